"""The paper's figures and tables, rebuilt from testbed runs: `python -m figures.build`."""
