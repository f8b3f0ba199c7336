"""Mutation check of the method: applies one mistake at a time to a copy of the package; the tests must fail.

    python benchmarks/mutations.py

Prints each mistake with the first test that fails; exit code 1 if no test fails for one of them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("step", "losses", "streams", "cutmix", "pseudo_labels", "perturbation", "network")
MUTATIONS = {
    "sign of one loss row": ("losses.py", 'LossRow("dkd", "sw", "ww", 1 / 2', 'LossRow("dkd", "sw", "ww", -1 / 2'),
    "assistants of sw and ss swapped": ("losses.py", '"sw", "ww", 1 / 2', '"sw", "ws", 1 / 2'),
    "p_sw and p_ss swapped": ("streams.py", '"sw": Stream("strong2", "weak")', '"sw": Stream("strong2", "strong")'),
    "eta and 1 - eta swapped": ("losses.py", "1 / 4, 1 - eta)", "1 / 4, eta)"),
    "teacher with gradient, stacked": ("network.py", "with torch.no_grad():", "with torch.enable_grad():"),
    "teacher with gradient, sequential": ("step.py", "torch.set_grad_enabled(learns)", "torch.enable_grad()"),
    "pseudo-labels with gradient": ("pseudo_labels.py", "logits = logits.detach()", "logits = logits * 1"),
    "labels without CutMix": ("unsupervised.py", ".cutmixed(self.boxes[view])", ""),
    "one field without CutMix": ("pseudo_labels.py", "for field in self))", "for field in self[:2]), self.valid)"),
    "box from the other neighbour": ("cutmix.py", "tensor[(sample + 1) % len(tensor)]", "tensor[sample - 1]"),
    "boxes of the other strong view": ("step.py", "boxes[view]) if view", "boxes[STRONG_VIEWS[0]]) if view"),
    "threshold ignored": ("losses.py", "p = probability[:, channel] * counts", "p = probability[:, channel] * 1"),
    "threshold ignored in the gradient": ("losses.py", "2 * squares), counts,", "2 * squares), 1,"),
    "threshold is strict": ("pseudo_labels.py", "confidence, confidence >= tau)", "confidence, confidence > tau)"),
    "probabilities not squared": ("losses.py", "p.square_().sum()", "p.sum()"),
    "temperature the wrong way": ("losses.py", ") / self.temperature", ") * self.temperature"),
    "absent classes always counted": ("losses.py", 'if self.absent == "count":', "if True:"),
    "unsupervised weight forgotten": ("step.py", "weight * unsupervised", "unsupervised"),
    "weak perturbation forgotten": ("network.py", "if perturbation is None else", 'if perturbation != "strong" else'),
    "lower heads on all rows": ("network.py", "head(x[:labeled_rows])", "head(x)"),
    "kept channels not scaled": ("perturbation.py", "Perturbation(kept / keep_rate, None)", "Perturbation(kept, None)"),
    "encoder of one view not trained": ("step.py", "if learning:\n", "if view != 'strong1':\n"),
    "label with the boxes of the other view": ("unsupervised.py", "(self.boxes[view])", '(self.boxes["strong1"])'),
    "students drawn without new weights": ("losses.py", "scale = len(students) / count", "scale = 1"),
}


def first_failing_test(package: Path) -> str | None:
    """Name of the first test that fails with the copied ``package``; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    files = [str(next((ROOT / "tests").rglob(f"test_{name}.py"))) for name in TESTS]
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command, *files], env=environment, cwd=ROOT / "tests", capture_output=True, text=True)
    if result.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", result.stdout, flags=re.MULTILINE)
    return found.group(1) if found else result.stdout[-300:]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "nnunetv2_crossmatch"
        shutil.copytree(ROOT / "nnunetv2_crossmatch", package, ignore=shutil.ignore_patterns("__pycache__"))
        if (failure := first_failing_test(package)) is not None:
            sys.exit(f"the tests fail without any mutation: {failure}")
        unnoticed = []
        for name, (file, old, new) in MUTATIONS.items():
            module = next(package.rglob(file))
            original = module.read_text()
            if original.count(old) != 1:
                sys.exit(f"{name}: {old!r} stands {original.count(old)} times in {file}")
            module.write_text(original.replace(old, new))
            failure = first_failing_test(package)
            module.write_text(original)
            print(f"{name:40} {failure or 'NOT NOTICED'}", flush=True)
            unnoticed += [name] if failure is None else []
    print(f"{len(MUTATIONS) - len(unnoticed)} of {len(MUTATIONS)} mutations noticed")
    sys.exit(bool(unnoticed))


if __name__ == "__main__":
    main()
