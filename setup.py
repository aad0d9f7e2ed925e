"""The wheel's copy of everything beside the library: settings, scripts, entry points, as ``guardrail/resources``.

All else is in pyproject.toml. `guardrail.core.places` finds these files in a checkout and in an installed wheel alike.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RESOURCES = (
    *("configs/**/*.*", "workflow/**/*", "scripts/**/*.s*", "similarity/*.py", "beavertails_moderation/*.py"),
    *("datasets/*.py", "datasets/README.md", "datasets/sandbox/*.py", "benchmarks/*.py"),
    *("eval_safety.py", "eval_utility.py", "__main__.py"),
)
CHECKOUT_ONLY = ("scripts/install.sh", "scripts/quickstart.sh", "scripts/test.sh")


class BuildWithResources(build_py):
    """Copies `RESOURCES` into the build, whose earlier content is removed: a renamed module must not come back."""

    def run(self) -> None:
        if self.editable_mode:
            return super().run()
        package = Path(self.build_lib) / "guardrail"
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        for file in sorted({file for pattern in RESOURCES for file in Path().glob(pattern) if file.is_file()}):
            if "__pycache__" not in file.parts and str(file) not in CHECKOUT_ONLY:
                target = package / "resources" / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


setup(cmdclass={"build_py": BuildWithResources})
