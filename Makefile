# Two commands do everything on a machine that has Python 3.9-3.12 and make:
#   make demo   set up, then draw pictures from Chinese and English prompts (out/demo/grid.png)
#   make test   set up, then run the tests
# Others: make lint, make data, make zoo, make regimes, make clean.

SUITABLE = import ensurepip, sys, venv; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10 python3.9 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c '$(SUITABLE)' >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q

.PHONY: demo gallery test lint data zoo regimes clean

$(VENV)/base: pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "mindpangu: no suitable Python found; install Python 3.9, 3.10, 3.11 or 3.12" \
		"(found: $$(python3 --version 2>/dev/null || echo no python3))"; exit 2; }
	@$(PYTHON) -c '$(SUITABLE)' || { echo "mindpangu: $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
		"Python 3.9-3.12 with venv is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@test "$(PYTHON)" = python3 || echo "mindpangu: python3 is $$(python3 --version 2>/dev/null || echo absent); using $(PYTHON)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/dev: $(VENV)/base
	$(PIP) -e '.[data,dev]'
	@touch $@

# Eight of the natural prompts that the judge asks, drawn at random (numpy, seed 1) among those for things that the model knows.
demo: $(VENV)/base
	$(BIN)/mindpangu generate \
		"taco tuesday" "movie night popcorn" "shrimps" "one 乌龟 for me" \
		"脖子很长的长颈鹿" "蹦蹦跳跳的兔子" "可怕的大鲨鱼" "大海里的鲸鱼" \
		--steps 30 --seed 1 --out out/demo --grid

# The pictures of docs/gallery.md: from a picture, into a picture, one model after another.
gallery: $(VENV)/base
	$(BIN)/mindpangu generate "a strawberry, 3D style" "一个汉堡, 3D风格" --init docs/gallery/apple.png --strength 0.8 \
		--seed 1 --out out/gallery/from_picture --grid
	$(BIN)/mindpangu generate "a dog on the left, a tulip on the right" "一只狗在左边，一个草莓在右边" \
		--init docs/gallery/pair.png --mask docs/gallery/right.png --strength 1 --seed 1 --out out/gallery/inpainted --grid
	$(BIN)/mindpangu generate "a fox, 3D style" "企鹅, 绿色背景" --refiner emoji-128 --refine-below 200 --seed 1 \
		--out out/gallery/refined --grid

# Two processes, each with its files of tests and one thread.
test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/lint
	$(PIP) --no-deps --no-build-isolation --target build/lint . 2>/dev/null || $(PIP) --no-deps --target build/lint .
	$(BIN)/mypy -p mindpangu
	cd build/lint && ../../$(BIN)/lint-imports --no-cache ../../pyproject.toml

data: $(VENV)/dev
	$(BIN)/mindpangu data emoji --out data/emoji --low-res-share 0.2

# emoji-128 as it was first released, whose nets go on in `make zoo`; from history, and from nothing by its commit's own `make zoo`.
FIRST_RELEASE := c429a81
runs/zoo/first:
	mkdir -p $@
	git archive $(FIRST_RELEASE) mindpangu/zoo/emoji-128 | tar -x --strip-components=3 -C $@

# Reproduces the shipped checkpoints; each part resumes where it stopped. Hours on two cores.
zoo: data runs/zoo/first
	$(PIP) -e '.[zoo]'
	for part in clip text_distillation text_distillation_2 line_vae line_base line_control bridge_to_text bridge_to_line; do \
		$(BIN)/mindpangu train --config configs/zoo/$$part.yaml || exit; done
	$(BIN)/mindpangu zoo pack --spec configs/zoo/model.yaml --out mindpangu/zoo/emoji-128 \
		--part vae=runs/zoo/first/vae --part text_encoder=runs/zoo/text_2/text_encoder --part text_encoder_2=runs/zoo/text_2/text_encoder_2 \
		--part structure=runs/zoo/first/structure --part texture=runs/zoo/first/texture --text-map runs/zoo/text_2/text_map.safetensors
	$(BIN)/mindpangu zoo pack --spec configs/zoo/line_model.yaml --out mindpangu/zoo/openmoji-line \
		--part vae=runs/zoo/line_vae/vae --part unet=runs/zoo/line_base/unet \
		--part controlnet=runs/zoo/line_control/controlnet \
		--part to_emoji-128/bridge=runs/zoo/bridge_to_text/bridge \
		--part from_emoji-128/bridge=runs/zoo/bridge_to_line/bridge

# The comparison of regimes in docs/regimes.md: trainings of small nets, three seeds, then the judge. Hours on two cores.
regimes: $(VENV)/dev
	$(PIP) -e '.[eval,watch]'
	$(BIN)/mindpangu data emoji --out data/regimes --style noto --style fluent_flat --low-res-share 0.324 --low-res-size 32
	$(BIN)/mindpangu data emoji --out data/regimes_full --style noto --style fluent_flat
	$(BIN)/mindpangu eval regimes

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
