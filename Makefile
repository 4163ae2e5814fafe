# make demo    a fleet on this machine: broker, aggregator, devices; about two minutes
# make test    everything that CI runs
# make check   ruff, mypy --strict and the fast tests; about two minutes
# Both set themselves up first: .venv with locked versions, and MQTT brokers where that is allowed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Most of the time of a test with real processes is waiting: five workers, also on two cores.
WORKERS ?= 5
# The tests start a thousand Pythons: their bytecode is kept, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=
RUN_TESTS := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

demo: $(STAMP)
	$(BIN)/edgefold demo $(DEMO)

test: lint
	$(RUN_TESTS) $(PYTEST)

check: lint
	$(RUN_TESTS) -m "not slow" $(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPY_NUM_WORKERS=2 $(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/edgefold bench train
	$(BIN)/edgefold bench idle

# The long runs behind docs/reliability.md; CI runs each of them in small.
nightly: simulate kills faults power-cuts scale slow-links strangers nets

simulate: $(STAMP)
	EDGEFOLD_SEEDS=$${SEEDS:-10000} $(BIN)/python -m pytest -s --timeout 86400 tests/simulation

kills: $(STAMP)
	EDGEFOLD_KILLS=$${KILLS:-1000} $(BIN)/python -m pytest -s tests/fleet/test_random_kills.py

faults: $(STAMP)
	EDGEFOLD_FAULTS=full $(BIN)/python -m pytest -s tests/faults/test_every_syscall.py \
	    tests/fleet/test_disk_trouble.py

power-cuts: $(STAMP)
	EDGEFOLD_POWER_CUTS=$${CUTS:-200} $(BIN)/python -m pytest -s --timeout 3600 \
	    tests/faults/test_power_cuts.py tests/faults/test_loop_disk.py

scale: $(STAMP)
	EDGEFOLD_SCALE=full $(BIN)/python -m pytest -s tests/faults/test_scale.py

slow-links: $(STAMP)
	EDGEFOLD_SLOW=full $(BIN)/python -m pytest -s tests/faults/test_slow_transfers.py

strangers: $(STAMP)
	EDGEFOLD_ENTRIES=$${ENTRIES:-10000} EDGEFOLD_EXAMPLES=$${EXAMPLES:-5000} \
	    $(BIN)/python -m pytest -s --timeout 7200 tests/strangers

nets: $(STAMP)
	EDGEFOLD_NETS=full $(RUN_TESTS) --timeout 3600 tests/models/graph/test_hundred_nets.py

# What Flower published of niid_bench, as long as published (docs/benchmarks.md): 1.2 hours of CPU a seed.
niid: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/edgefold reproduce niid-full --seeds $${SEEDS:-1} --report niid.json

# The same job in edgefold, Flower and NVFLARE: half an hour, on a machine with nothing else to do.
peers: $(STAMP)
	$(BIN)/edgefold bench peers --install --report peers.json

soak: $(STAMP)
	EDGEFOLD_SOAK_MINUTES=$${MINUTES:-120} $(BIN)/python -m pytest -s --timeout 86400 \
	    tests/fleet/test_soak.py

# The codec and its ONNX graphs on an emulated Raspberry Pi 4 (Debian, as root; 300 MB in build/arm).
arm: $(STAMP)
	tools/dev/arm_python.sh $(VENV) build/arm
	EDGEFOLD_ARM=$(CURDIR)/build/arm/python $(BIN)/python -m pytest -s tests/arm

# README typed word for word on clean Debian 12 and 13 machines under their own systemd (as root; 0.6 GB in
# build/clean-roots), and the services' watchdog, limits and applications under one (build/trial).
clean-roots: $(STAMP)
	EDGEFOLD_CLEAN_ROOTS=all $(BIN)/python -m pytest -s tests/systemd/test_first_day.py
	PYTHON=$(CURDIR)/$(BIN)/python tests/systemd/trial.sh build/trial

# Renews every pinned version; torch stays as pyproject.toml and the two lines below say.
lock: $(STAMP)
	$(BIN)/python -m pip install -q --upgrade --upgrade-strategy eager -e '.[dev]' \
	    'torch==2.13.0'
	tools/dev/lock.sh $(BIN)/python > constraints.txt

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt tools/dev/setup.sh
	tools/dev/setup.sh $(PYTHON) $(VENV)
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache demo-out

.PHONY: demo test check lint format bench lock setup clean
.PHONY: nightly simulate kills faults power-cuts scale slow-links strangers nets niid peers soak arm clean-roots
.DEFAULT_GOAL := check
