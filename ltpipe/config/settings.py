"""``configs/pipeline.yaml``: what runs and what a person likes to watch. Nothing of it changes a result or a digest."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from ltpipe.config.fields import Block
from ltpipe.config.messages import user_error
from ltpipe.config.yaml_positions import read_yaml
from ltpipe.errors import UserError

FILE = Path("configs") / "pipeline.yaml"


class Logger(Block):
    """Where the curves of trainings can be watched live; each needs its package."""

    type: Literal["tensorboard", "wandb", "mlflow"] = Field(description="mmengine's backend")
    folder: Path = Field(Path("logs"), description="files of the logger: <folder>/<type>/<experiment>/<stage>")
    project: str = Field("ltpipe", description="wandb: project; mlflow: experiment")
    options: dict[str, Any] = Field(
        {}, description="wandb: arguments of wandb.init, e.g. {mode: offline}; mlflow: of mmengine's MLflowVisBackend"
    )

    @model_validator(mode="after")
    def _tensorboard_has_none(self) -> Logger:
        if self.type == "tensorboard" and self.options:
            raise ValueError("tensorboard has no options")
        return self

    def backend(self, experiment: str, stage: str) -> dict[str, Any]:
        """Return the config of mmengine's backend for a stage of an experiment."""
        folder = str(self.folder / self.type / experiment / stage)
        if self.type == "tensorboard":
            return dict(type="TensorboardVisBackend", save_dir=folder)
        if self.type == "wandb":
            run = {"project": self.project, "name": f"{experiment} {stage}", **self.options}
            return dict(type="WandbVisBackend", save_dir=folder, init_kwargs=run)
        run = {"exp_name": self.project, "run_name": f"{experiment} {stage}", **self.options}
        return dict(type="MLflowVisBackend", save_dir=folder, **run)


class Settings(Block):
    """The whole file."""

    experiments: tuple[str, ...] | str = Field((), description="experiments that `snakemake all` runs")
    stages: tuple[str, ...] | str = Field((), description="modules with stages of the project's own")
    loggers: tuple[Logger, ...] = Field((), description="where trainings can be watched")


def read_settings(file: Path = FILE) -> Settings:
    """Return the settings of the project in the working directory; without the file those by default.

    Raises:
        UserError: A key or value is not known, or a package is missing.
    """
    if not file.is_file():
        return Settings()
    document = read_yaml(file)
    try:
        found = Settings.model_validate({key: value for key, value in document.values.items() if value is not None})
    except ValidationError as error:
        raise user_error(error, Settings, document, file) from error
    for index, logger in enumerate(found.loggers):
        if find_spec(logger.type) is None:
            raise UserError(
                "the package of a logger is not installed",
                where=document.where(("loggers", index, "type"), file),
                got=logger.type,
                fix=f"pip install {logger.type}, or take it out",
            )
    return found
