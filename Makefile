# Everything a newcomer needs: make demo, make test. Each makes .venv if it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: docs demo test test-fast slow-list test-extras test-pages test-floor fuzz lint hooks format dist smoke mini real lock clean

$(STAMP):
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	rm -f $(VENV)/.installed-* && touch $(STAMP)

demo: $(STAMP)  ## findings for unseen X-rays, their scores, a taste of both trainings, one HTML page
	$(BIN)/cxr demo

test: $(STAMP)  ## lint and the whole test suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(STAMP)  ## the tests that are not slow, in about a minute and a half
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

slow-list: $(STAMP)  ## run all tests, and write down which of them make test-fast is to leave out
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal \
		--junitxml=.pytest_cache/times.xml
	$(BIN)/python -m tests.slow .pytest_cache/times.xml

test-extras:  ## the tests that need the extras rl, qlora and deepspeed
	test -x .venv-extras/bin/python || $(PYTHON) -m venv .venv-extras
	.venv-extras/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev,rl,qlora,deepspeed]" \
		-c constraints.txt -c constraints-extras.txt
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-extras/bin/python -m pytest -n 2 --dist worksteal \
		tests/train/test_grpo.py tests/train/test_finetune_ways.py tests/train/test_finetune_processes.py \
		tests/train/test_faults.py \
		-k "grpo or four_bits or deepspeed"

test-pages:  ## the HTML pages in a real browser (on Debian: apt-get install chromium), with axe-core
	test -x .venv-pages/bin/python || $(PYTHON) -m venv .venv-pages
	.venv-pages/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev,browser]" \
		-c constraints.txt -c constraints-extras.txt
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-pages/bin/python -m pytest -n 2 --dist worksteal tests/eval/test_pages.py

docs: $(STAMP)  ## what the docs hold of the code and of the numbers, and the site in site/; strict
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --strict --clean

test-floor:  ## the same tests on the oldest versions we promise
	test -x .venv-floor/bin/python || $(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints-floor.txt
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-floor/bin/python -m pytest -n 2 --dist worksteal

N ?= 10000
SEED ?= 1
fuzz: $(STAMP)  ## N damaged files of all kinds, and what becomes of them; the damage is SEED's
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --n $(N) --seed $(SEED)

lint: $(STAMP)  ## style, and types: strict rooms without an error, the rest counted
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python tests/typecheck.py

hooks: $(STAMP)  ## check style and walls before every commit from now on
	$(BIN)/pre-commit install

format: $(STAMP)
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

dist: $(STAMP)  ## a source distribution and the wheel made of it, their files compared with git's
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/python tests/smoke/check_dist.py dist

smoke: dist  ## the wheel in a new environment, without the checkout, and the README pasted into a shell (20 minutes)
	$(BIN)/python tests/smoke/wheel.py dist/*.whl --constraints constraints.txt
	$(BIN)/python tests/smoke/readme.py

mini: $(STAMP)  ## train the shipped demonstration model again (about two hours on two cores; resumable)
	$(BIN)/python -m train.pipelines.mini --out runs/mini --install

real: $(STAMP)  ## a model of one's own on the real X-rays that CXR_DATA points to, five-fold by patient
	$(BIN)/python -m train.pipelines.real --out runs/real_small

lock: $(STAMP)
	$(BIN)/python -m pip freeze --exclude-editable | sed '1i # Exact versions that resolve together and that the tests ran on. Update all at once: make lock' > constraints.txt

clean:
	rm -rf build dist site .cache *.egg-info .pytest_cache .ruff_cache .mypy_cache demo_out
