# Two commands do everything on a machine with Python and make: `make reproduce`, `make test`.
# `make simd` tries a decoder that needs an environment of its own, `make gpu-check` a GPU;
# `make bench-envs` makes environments for the loaders that cannot share ours.

# Where this is set, every process compiles its Python anew: ten seconds for torch and timm.
export PYTHONDONTWRITEBYTECODE :=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: reproduce speedrun figures test test-all lint format constraints simd gpu-check gpu-folder bench-envs bench-load

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SRP_DATA := $(BIN)/srp-data
SRP_TRAIN := $(BIN)/srp-train

# Images: a folder with train/ and val/, or a .tgz of one. Empty looks for Imagenette in data/,
# then downloads it, then falls back on drawn scenes.
DATA ?=
# smoke: drawn scenes, a few minutes. quick: for two cores. full: the predecessor's sizes, for a GPU.
PROFILE ?= $(shell nvidia-smi -L > /dev/null 2>&1 && echo full || echo quick)

# Where data/, shards/ and runs/ go.
WORK ?= .

# Drawn scenes of two kinds: choosing pays where objects are small, and not where they fill the image.
SCENES := --train 300 --val 100 --size 80
SCENES_small := --smallest 0.1 --largest 0.16
SCENES_large := --smallest 0.6 --largest 0.9
# Photographs with a longer side of so much of the canvas's.
SCATTERED := --smallest 0.35 --largest 0.5

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[train,export,dali,remote,ray,bench,dev]'
	$(BIN)/python -c 'import pipeline.pixels.kernels'  # compiles now, and not before the first image
	touch $@

# pillow-simd provides PIL as Pillow does, so it gets an environment of its own, without torch.
SIMD := .venv-simd/bin
SIMD_READY := .venv-simd/.ready
PILLOW_SIMD := pillow-simd==12.1.1.post0
# In CC and not in CFLAGS, which would replace -O3. Without AVX2 it still uses SSE4.
SIMD_CC ?= cc $(shell grep -qs avx2 /proc/cpuinfo && echo -mavx2)

$(SIMD_READY): pyproject.toml constraints.txt
	@$(PYTHON) -m venv --clear .venv-simd
	$(SIMD)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(SIMD)/uv pip install --quiet --python $(SIMD)/python -c constraints.txt \
	  --excludes <(echo pillow) -e . hypothesis pytest pytest-timeout pytest-xdist
	# A wheel in uv's cache may be one for another CPU.
	CC='$(SIMD_CC)' $(SIMD)/uv pip install --quiet --python $(SIMD)/python --no-cache --no-deps \
	  -C jpeg=enable -C zlib=enable -C freetype=enable $(PILLOW_SIMD) || {
	  echo "error: pillow-simd needs a C compiler and headers:" \
	    "apt-get install gcc python3-dev libjpeg-dev zlib1g-dev libfreetype-dev" >&2; exit 2; }
	$(SIMD)/python -c 'import PIL; assert ".post" in PIL.__version__, PIL.__version__'
	touch $@

# Loaders that `srp-data bench load` measures and that ask for older packages than ours: MosaicML
# Streaming for numpy before 2.2, LitData by way of boto3 for an older python-dateutil. FFCV is
# built from source and does not name all that it imports. All run bench files, but not srp.
PEERS := .venv-peers/bin
PEERS_READY := .venv-peers/.ready
FFCV := .venv-ffcv/bin
FFCV_READY := .venv-ffcv/.ready
TORCH := torch==2.15.0

$(PEERS_READY): Makefile
	@$(PYTHON) -m venv --clear .venv-peers
	$(PEERS)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(PEERS)/uv pip install --quiet --python $(PEERS)/python \
	  $(TORCH) litdata==0.2.76 mosaicml-streaming==0.13.0
	$(PEERS)/python -c 'import litdata, streaming'
	touch $@

$(FFCV_READY): Makefile
	@pkg-config --exists opencv4 libturbojpeg 2> /dev/null || {
	  echo "error: ffcv needs a C++ compiler and headers:" \
	    "apt-get install g++ python3-dev pkg-config libopencv-dev libturbojpeg0-dev" >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv-ffcv
	$(FFCV)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	# opencv-python would want a display's libraries; what FFCV uses of it is in the headless one.
	$(FFCV)/uv pip install --quiet --python $(FFCV)/python --excludes <(echo opencv-python) \
	  $(TORCH) ffcv==1.0.2 numpy==2.4.6 numba==0.68.1 opencv-python-headless pillow || {
	  echo "error: ffcv could not be built; its reason stands above." \
	    "It needs: apt-get install g++ python3-dev" >&2; exit 2; }
	$(FFCV)/python -c 'import ffcv.loader, ffcv.writer'
	touch $@

bench-envs: $(READY) $(PEERS_READY) $(FFCV_READY)

# SHARDS: a folder of shards in the canvas layout. DATA: what they were built from.
bench-load: bench-envs
	@[[ -n '$(SHARDS)' ]] || {
	  echo "error: make bench-load needs shards: make bench-load SHARDS=/path/to/shards" >&2; exit 2; }
	data='$(DATA)'
	$(SRP_DATA) bench load '$(SHARDS)' $${data:+--source "$$data"} \
	  --python ffcv=$(FFCV)/python --python litdata=$(PEERS)/python \
	  --python mosaicml=$(PEERS)/python $(BENCH_OPTIONS)

# Sets data to Imagenette in data/, downloaded if it is not there; to nothing without a network.
define FIND_IMAGENETTE
find_imagenette() {
  data=$$(ls -d '$(WORK)'/data/imagenette2-320* '$(WORK)'/data/imagenette2* 2> /dev/null \
    | grep -v -e '\.part$$' -e '-scattered' | head -n 1 || true)
  [[ -z "$$data" ]] || return 0
  $(SRP_DATA) download imagenette2-320 -o '$(WORK)/data' && data='$(WORK)/data/imagenette2-320.tgz' || true
}
endef

# Images -> shards -> training -> report. Every part goes on where an earlier call stopped.
reproduce: $(READY)
	@case '$(PROFILE)' in smoke | quick | full) ;; *)
	  echo "error: PROFILE must be smoke, quick or full; got $(PROFILE)." >&2; exit 2 ;; esac
	$(FIND_IMAGENETTE)
	work='$(WORK)' folders=() options=()
	step() { echo "== $$1 ($$SECONDS s after the start)" >&2; }
	# Usage: choose DATA NAME PROFILE; sets crop and epochs to what this machine has time for.
	choose() {
	  step "$$2: sizes"
	  local sizes
	  sizes=$$($(SRP_TRAIN) sizes "$$1" --profile "$$3" -o "$$work/runs/$$2-sizes.json")
	  read -r crop epochs <<< "$$sizes"
	}
	# Usage: compare DATA NAME PROFILE NOTE CANVAS BUILD_OPTIONS -- STUDY_OPTIONS
	compare() {
	  local data=$$1 name=$$2 profile=$$3 note=$$4 canvas=$$5 build=()
	  shift 5
	  while [[ "$$1" != -- ]]; do build+=("$$1"); shift; done
	  shift
	  local shards="$$work/shards/$$name" runs="$$work/runs/$$name"
	  step "$$name: shards"
	  $(SRP_DATA) build-shards "$$data" "$$shards" --canvas-size "$$canvas" --crop-size "$$crop" "$${build[@]}"
	  step "$$name: verify"
	  $(SRP_DATA) verify "$$shards"
	  step "$$name: study"
	  $(SRP_TRAIN) study "$$shards" --profile "$$profile" --epochs "$$epochs" --output "$$runs" "$$@"
	  folders+=("$$runs")
	  options+=(--shards "$$shards" --note "$$note")
	}
	# Usage: report; of all that was compared. Prints the answers.
	report() {
	  step report
	  $(SRP_TRAIN) report "$${folders[@]}" "$${options[@]}"
	  local runs
	  for runs in "$${folders[@]}"; do
	    echo "$$(basename "$$runs"): $$($(BIN)/python -c \
	      'import json, sys; print(json.load(open(sys.argv[1]))["answer"])' "$$runs/report.json")"
	  done
	  step done
	}
	data='$(DATA)'
	[[ -n "$$data" || '$(PROFILE)' == smoke ]] || find_imagenette
	if [[ -z "$$data" ]]; then
	  echo "*** This run uses drawn scenes, not photographs. For Imagenette: make reproduce DATA=/path/to/it ***" >&2
	  draw() {
	    [[ -d "$$work/data/drawn-$$1/train" ]] \
	      || $(SRP_DATA) sample "$$work/data/drawn-$$1" $(SCENES) "$${@:2}"
	  }
	  draw small $(SCENES_small)
	  draw large $(SCENES_large)
	  choose "$$work/data/drawn-small" smoke-drawn smoke
	  for kind in small large; do
	    compare "$$work/data/drawn-$$kind" "smoke-drawn-$$kind" smoke "drawn scenes, $$kind objects" \
	      $$((crop * 5 / 2)) --glimpse-size "$$crop" --candidates full+grid3 --
	  done
	  report
	  exit
	fi
	base=$$(basename "$$data" .tgz)
	name="$(PROFILE)-$$base"
	choose "$$data" "$$name" "$(PROFILE)"
	if [[ "$(PROFILE)" == full ]]; then
	  compare "$$data" "$$name" full "$$base" $$((crop * 3 / 2)) --glimpse-size 64 --candidates full+five --
	  report
	  exit
	fi
	crops=(--glimpse-size "$$crop" --candidates full+grid3)
	compare "$$data" "$$name" "$(PROFILE)" "$$base" $$((crop * 5 / 4)) "$${crops[@]}" --
	# The same images, small and anywhere, though large enough to be found within minutes; every arm
	# goes on from its own training on the first.
	scattered="$$work/data/$$base-scattered-$$((crop * 2))"
	step "$$name: scatter"
	[[ -d "$$scattered/train" ]] || $(SRP_DATA) scatter "$$data" "$$scattered" --size $$((crop * 2)) $(SCATTERED)
	compare "$$scattered" "$$name-scattered" "$(PROFILE)" "$$base, scattered" $$((crop * 2)) "$${crops[@]}" -- \
	  --initial-checkpoint "$$work/runs/$$name/{arm}-s{seed}"
	report

# The best short training that is known: the whole image at 128 px, 5 epochs; training/results says how
# it was searched.
SPEEDRUN := -c training/recipes/short.toml --policy whole --candidates full --seed 0 \
  --experiment speedrun --resume

speedrun: $(READY)
	@$(FIND_IMAGENETTE)
	data='$(DATA)'
	[[ -n "$$data" ]] || find_imagenette
	[[ -n "$$data" ]] || {
	  echo "error: make speedrun needs Imagenette: make speedrun DATA=/path/to/it" >&2; exit 2; }
	$(SRP_DATA) build-shards "$$data" '$(WORK)/shards/speedrun' --canvas-size 160 --crop-size 128 \
	  --glimpse-size 32 --candidates full+five
	$(SRP_TRAIN) from '$(WORK)/shards/speedrun' --output '$(WORK)/runs' $(SPEEDRUN)

# The pictures of the READMEs. With DATA=/path/to/Imagenette also the front page's, which is trained first.
figures: $(READY)
	@$(BIN)/python training/results/figures.py '$(DATA)' '$(WORK)/runs/figures'

# Two processes of one thread each; the twenty slowest tests are printed.
PYTEST := -m pytest -n 2 --dist worksteal --durations 20
test test-all: export OMP_NUM_THREADS = 1

test: lint
	@$(BIN)/python $(PYTEST) -m 'not sweep'

# Every sweep, with more examples of every property.
test-all: lint
	@$(BIN)/python $(PYTEST) --hypothesis-profile all

# Images for the benches: DATA, or drawn scenes.
define BENCH_DATA
data='$(DATA)'
if [[ -z "$$data" ]]; then
  data='$(WORK)/data/drawn-bench'
  [[ -d "$$data/train" ]] || $(SRP_DATA) sample "$$data" --train 100 --val 2
fi
endef

# What depends on who decodes and resizes.
DECODING := $(addprefix tests/pipeline/,decode pixels format/test_cutting.py build/test_build.py)

simd: $(READY) $(SIMD_READY)
	@$(SIMD)/python $(PYTEST) -m 'not sweep' $(DECODING)
	$(BENCH_DATA)
	$(SRP_DATA) bench build "$$data" --images 200 --beside $(SIMD)/python $(BENCH_OPTIONS)

# On a machine without a network: python3 tests/gpu/gpu_check.py, and what gpu-folder made.
gpu-check: $(READY)
	@$(BIN)/python tests/gpu/gpu_check.py --work '$(WORK)/runs/gpu-check' $(if $(DATA),--data '$(DATA)')

gpu-folder: $(READY)
	@PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python tests/gpu/gpu_folder.py '$(DATA)'

lint: $(READY)
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

constraints: $(READY)
	@$(BIN)/uv pip compile --quiet --universal --all-extras --python-version 3.11 --no-annotate \
	  --no-header --upgrade pyproject.toml -o constraints.txt

format: $(READY)
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
