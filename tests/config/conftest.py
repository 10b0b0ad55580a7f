"""The small project."""

from tests.helpers.small_project_fixtures import load, project

__all__ = ["load", "project"]
