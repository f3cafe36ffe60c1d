# `make sweep` and `make test` do their own set-up: a fresh clone needs Python 3.11 or newer and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: sweep test test-faults test-slow lint paper set-up clean

sweep: $(VENV)/installed
	$(BIN)/python -m tune_dd.sweep --quick

test: $(VENV)/installed lint
	$(BIN)/python -m pytest -m "not faults and not slow" -n 2 --dist loadfile --no-loadscope-reorder

# Kills, torn files, full disks. FAULT_SEED replays a campaign, FAULT_POINTS asks for more of it.
# Three at a time: much of it waits for processes to start and to end.
FAULT_SEED ?= 1
FAULT_POINTS ?= 100
test-faults: $(VENV)/installed
	$(BIN)/python -m pytest tests/faults -m faults -n 3 --dist loadfile --fault-seed $(FAULT_SEED) --fault-points $(FAULT_POINTS)

# The first steps of every full-scale model on cpu, its journal and a resume: minutes, one model at a time.
test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow --durations=0

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every number from ray_results/saved, then the PDF. Nothing is trained.
PAPER := dropout_decay_regime_specific_pressure_law
LATEX_HINT := error: no LaTeX here: install it with apt-get install texlive-latex-extra texlive-fonts-recommended latexmk
paper: $(VENV)/installed
	$(BIN)/python -m analysis.paper
	@command -v latexmk >/dev/null && command -v pdflatex >/dev/null || { echo "$(LATEX_HINT)" >&2; exit 2; }
	cd paper && SOURCE_DATE_EPOCH=0 latexmk -pdf -quiet -interaction=nonstopmode -halt-on-error $(PAPER).tex

set-up: $(VENV)/installed

# torch first and by its exact name: any other way may fetch another build, of gigabytes.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
