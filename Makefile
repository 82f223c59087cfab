# `make demo` and `make test` set up all they need, on a fresh Debian machine too.

PYTHON ?= python3
NPROC ?=  # if not given: one rank a GPU, on CPUs 2
TESTS_AT_ONCE ?= 2
RUNS ?= build
EPOCHS ?= 6

BIN := .venv/bin
INSTALLED := .venv/.installed
FFCV := .venv/.ffcv

# $(call provide,PACKAGES): as root on Debian install them if $$missing names any, else say so.
define provide
if [ -z "$$missing" ]; then :; \
elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $(1) >/dev/null; \
else echo "not installed:" $$missing "(Debian: apt install $(1))"; fi
endef

# $(call ensure,PROGRAMS,PACKAGES): the same where a program is missing.
define ensure
missing=$$(for program in $(1); do command -v $$program >/dev/null || echo $$program; done); \
$(call provide,$(2))
endef

.PHONY: help system ffcv demo cifar10 test lint audit docs clean

help:
	@echo "make demo               train on generated images and write a report, about 3 minutes"
	@echo "make cifar10 DATA=PATH  the same on CIFAR-10: its archive, a folder with train/ and test/, or Parquet"
	@echo "                        (SIZE=32 beside it scales and crops other images)"
	@echo "make ffcv               install ffcv, which writes .beton files"
	@echo "make test               the tests"
	@echo "make lint               ruff and mypy"
	@echo "make audit              ask for known vulnerabilities of the dependencies; needs a network"
	@echo "make docs               the documentation as a site, in build/site"
	@echo "make clean              remove what these made"

$(INSTALLED): pyproject.toml constraints.txt $(wildcard data_prep/shard_set/c/*)
	@if [ "$(PYTHON)" = python3 ]; then $(call ensure,python3,python3 python3-venv); fi
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call ensure,python3-venv,python3-venv); }
	@test -f /usr/include/jpeglib.h || { $(call ensure,jpeglib.h,gcc libc6-dev libjpeg62-turbo-dev); }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is missing or older than 3.11: call make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Programs that the tests drive; where one is missing, its tests skip (with CI=true they fail).
system:
	@$(call ensure,git chromium prometheus promtool openssl,git chromium fonts-dejavu-core prometheus openssl)
	@$(call ensure,bindfs,bindfs)
	@$(call ensure,slurmctld slurmd sbatch munged ip,slurmctld slurmd slurm-client munge iproute2)

# ffcv is compiled against two modules of OpenCV. Debian has them alone, 14 packages instead of
# nearly 200, but then without an opencv4.pc, and with an opencv.hpp that wants all modules.
# Of the Python packages that it names, ffcv loads only these; the others bring the newest torch.
FFCV_REQUIRES := numba opencv-python-headless tqdm
FFCV_PACKAGES := g++ pkg-config python3-dev libopencv-core-dev libopencv-imgproc-dev libturbojpeg0-dev
FFCV_NEEDS = missing=$$( \
	for program in g++ pkg-config; do command -v $$program >/dev/null || echo $$program; done; \
	[ -e "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] \
		|| echo Python.h; \
	pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg; \
	pkg-config --exists opencv4 2>/dev/null || [ -e /usr/include/opencv4/opencv2/imgproc.hpp ] \
		|| echo opencv)

ffcv: $(FFCV)

# Where that cannot be had, the tests that need ffcv skip (with CI=true they fail).
$(FFCV): $(INSTALLED)
	@$(FFCV_NEEDS); $(call provide,$(FFCV_PACKAGES))
	@mkdir -p build/opencv/opencv2
	@printf '#include <opencv2/%s.hpp>\n' core imgproc > build/opencv/opencv2/opencv.hpp
	@printf '%s\n' 'Name: opencv4' 'Description: what ffcv needs of it' 'Version: 4' \
		'Cflags: -I$(CURDIR)/build/opencv -I/usr/include/opencv4' \
		'Libs: -lopencv_imgproc -lopencv_core' > build/opencv/opencv4.pc
	@$(FFCV_NEEDS); if [ -n "$$missing" ]; then echo "ffcv is left out: without" $$missing; exit; fi; \
	pkg-config --exists opencv4 || export PKG_CONFIG_PATH="$(CURDIR)/build/opencv"; \
	{ $(BIN)/python -m pip install --quiet --constraint constraints.txt $(FFCV_REQUIRES) && \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps ffcv && \
		touch $@; } || echo "ffcv is left out: it could not be installed, see above"

demo: $(INSTALLED)
	@rm -rf $(RUNS)/demo
	@$(BIN)/python -m launch demo --output $(RUNS) $(if $(NPROC),--nproc $(NPROC)) --epochs $(EPOCHS)

CIFAR10_SOURCE = $(if $(wildcard $(DATA)/train),folder,$(if \
	$(wildcard $(DATA)/*.parquet $(DATA)/*/*.parquet),parquet,cifar10))
cifar10: $(INSTALLED)
	@test -n "$(DATA)" || { echo "error: DATA is missing; call make cifar10 DATA=PATH, where PATH \
is cifar-10-python.tar.gz, a folder with train/CLASS/* and test/CLASS/*, or one of Parquet files"; exit 1; }
	$(BIN)/python -m data_prep shard $(CIFAR10_SOURCE) --encoding rgb $(if $(SIZE),--size $(SIZE)) \
		--input "$(DATA)" --output $(RUNS)/cifar10-shards
	$(BIN)/python -m launch local --nproc $(or $(NPROC),2) cifar10 \
		--data.shards $(RUNS)/cifar10-shards --run-dir $(RUNS)/cifar10
	$(BIN)/python -m pipeline.report $(RUNS)/cifar10

# Files side by side: many tests only wait. Those with a SLURM take longest, and are among the first.
test: $(INSTALLED) system $(FFCV)
	$(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) --dist loadfile --durations=10 \
		--no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Not a part of CI, which has no network.
audit:
	@$(PYTHON) -m venv $(RUNS)/audit && $(RUNS)/audit/bin/python -m pip install --quiet pip-audit || \
		{ echo "error: not audited, as pip-audit cannot be installed: is there a network?"; exit 1; }
	@$(RUNS)/audit/bin/pip-audit --strict --progress-spinner off --no-deps --disable-pip \
		--requirement constraints.txt || \
		{ echo "error: known vulnerabilities are listed above, or nobody could be asked"; exit 1; }

# A dead link, or a name that is not there, is an error.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(abspath $(RUNS))/site

clean:
	rm -rf .venv $(RUNS)
