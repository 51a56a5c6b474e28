"""The demo behind `manifoldid demo`: an ensemble before and after alignment, and a scale that a penalty destroys."""

from manifoldid.demo.run import run_demo

__all__ = ["run_demo"]
