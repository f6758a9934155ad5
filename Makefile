# Unbraid. `make demo` and `make test` work from a fresh clone; a second run is quick, an interrupted one is repaired.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# $(call install,extras): a half-made environment is made anew, since nothing says which of its files are whole
define install
	@if [ -e $(VENV)/.unfinished ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "Making $(VENV) ..." && $(PYTHON) -m venv --clear $(VENV); fi
	@touch $(VENV)/.unfinished
	@echo "Installing Unbraid$(1) with pinned versions (minutes the first time) ..."
	@$(PIP) torch==2.13.0
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation --editable ".$(1)"
	@rm -f $(VENV)/.unfinished
	@[ -e $(VENV)/.core ] || touch $(VENV)/.core
	@touch $@
endef

DEV := [dev]
DOCS := [dev,docs]

.PHONY: help demo test lint docs bench studies constraints clean

help:
	@echo "make demo     find the retrieval heads of a real language model and write a page about them"
	@echo "make test     run the tests          make lint     style, types, rules of the house"
	@echo "make docs     build the site         make bench    run the benchmarks"
	@echo "make studies  run the slow claims    make clean    remove the environment and what was built"

$(VENV)/.core: constraints.txt pyproject.toml
	$(call install,)

$(VENV)/.dev: $(VENV)/.core
	$(call install,$(DEV))

$(VENV)/.docs: $(VENV)/.core
	$(call install,$(DOCS))

demo: $(VENV)/.core
	@$(BIN)/unbraid run retrieval_heads

# -n 2: two processes, each with one thread; more only fight for the cores of a small machine
test: $(VENV)/.dev
	@$(RUN) -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tools/house.py

docs: $(VENV)/.docs
	@$(BIN)/python tools/readme_table.py --check
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site is in site/index.html"

bench: $(VENV)/.dev
	-@$(PYTHON) -m benchmarks.peers.build
	@$(BIN)/python -m benchmarks.attention_statistics $(ARGS)

studies: $(VENV)/.dev
	@$(RUN) -m pytest -m study --timeout=3600 $(ARGS)
	@$(RUN) -m unbraid.systems.retrieval_heads.copy_model
	@$(BIN)/unbraid run retrieval_heads --lengths 512,1024,2048,4096 --seeds 3 --trials 12 --mask-trials 5 \
		--mask-heads 2,5,10,20,30,50,100 --mask-lengths 512,1024,2048,4096 --keep runs/studies/retrieval_heads \
		--out results/retrieval_heads/smollm2-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run secondary_sinks --traces 8 --trace-tokens 512 --english 8 --causal 12 --seed 1 \
		--keep runs/studies/secondary_sinks --out results/secondary_sinks/smollm2-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run secondary_sinks --model gemma3-270m --traces 6 --english 6 --seed 1 \
		--keep runs/studies/secondary_sinks_gemma --out results/secondary_sinks/gemma3-270m-$$(date +%Y%m%d-%H%M%S)
	@$(RUN) -m unbraid.systems.attention_sinks.training.study --seed 1 \
		--out results/attention_sinks/variants-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run attention_sinks --others gemma3-270m --streams 2 --keep runs/studies/attention_sinks \
		--out results/attention_sinks/smollm2-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run circuit_reuse --prompts 20 --held-out 48 --seeds 2 --batch 20 --most-shots 2 \
		--keep runs/studies/circuit_reuse --out results/circuit_reuse/smollm2-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run s2t_cross_attention --recordings arctic,praatio,librivox,beckett --spoken 6 --masks 240 \
		--encoder-masks 240 --deletion-clips 6 --world-seeds 5 --context-masks 36 --keep runs/studies/s2t_cross_attention \
		--out results/s2t_cross_attention/whisper-tiny.en-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run active_variables --objectives beta,beta_tc,factor,dip_ii,annealed,dip_i --levels 3 --seeds 5 \
		--downstream both --checks 5 --keep runs/studies/active_variables \
		--out results/active_variables/sprites-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run xfactors --worlds sprites,shapes3d,cars3d --seeds 3 \
		--methods 'XFactors,500 / 100,capacity,leakage,exchange,outside,classifier,no contrast,Ada-GVAE,beta-VAE' \
		--keep runs/studies/xfactors --out results/xfactors/worlds-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run eeg_scan --seeds 5 --keep runs/studies/eeg_scan \
		--out results/eeg_scan/simulated-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run headhunter --seeds 5 --keep runs/studies/headhunter \
		--out results/headhunter/stripes-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run headhunter --model tiny-sd --objectives style:sketch,style:outlined,clarity --seeds 3 --weight 1 \
		--halving 3 --keep runs/studies/headhunter-sd --out results/headhunter/tiny-sd-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run disenbooth --seeds 5 --keep runs/studies/disenbooth \
		--out results/disenbooth/vectors-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run disenbooth --model tiny-sd --subjects 3 --seeds 1 --steps 900 --looks 6 --rank 32 --batch 4 \
		--guidance 3.5 --modules to_q,to_k,to_v,to_out.0,net.0.proj,net.2 --keep runs/studies/disenbooth-sd \
		--methods "DisenBooth,weak 0,weak 0.1,contrast 0,no mask,DreamBooth-LoRA,Textual Inversion" \
		--out results/disenbooth/tiny-sd-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run deberta --parts exact,worlds,decoder,pretraining --seeds 5 --keep runs/studies/deberta \
		--out results/deberta/small-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run deconstructing_attention --parts matrix --seeds 3 --keep runs/studies/deconstructing \
		--out results/deconstructing_attention/matrix-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run deconstructing_attention --parts losses --steps 3000 --seeds 3 \
		--keep runs/studies/deconstructing --out results/deconstructing_attention/small-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run deconstructing_attention --parts losses --steps 3000 --seeds 3 --base qwen3 \
		--variants standard,non_approximate --keep runs/studies/deconstructing \
		--out results/deconstructing_attention/qwen3-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run deconstructing_attention --parts conversion --steps 100 --seeds 2 --placements hybrid \
		--variants approximate,non_approximate,random,static,mlp --keep runs/studies/deconstructing \
		--out results/deconstructing_attention/conversion-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run icl_linear_regression --parts theory,heads,lengths,anisotropic,multitask,activations \
		--heads 1,2,3,4,8 --seeds 5 --steps 24000 --side-steps 9000 --keep runs/studies/icl_linear_regression \
		--out results/icl_linear_regression/small-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run icl_linear_regression --parts theory,heads,lengths --heads 1,2,3,4 --seeds 3 --steps 500000 \
		--side-steps 9000 --keep runs/studies/icl_linear_regression \
		--out results/icl_linear_regression/full-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run random_feature_attention --seeds 5 --parts exact,curves,keys,mixing,degrees,frozen \
		--keep runs/studies/random_feature_attention \
		--out results/random_feature_attention/small-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run random_feature_attention --size full --seeds 3 --parts curves --heads 1000 \
		--sizes 200,500,1000,2000,5000,10000 --keep runs/studies/random_feature_attention-full \
		--out results/random_feature_attention/full-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run random_feature_attention --size full --seeds 2 --parts curves --heads 1000 \
		--sizes 200,500,1000,2000,5000,10000,20000 --keep runs/studies/random_feature_attention-full \
		--out results/random_feature_attention/full-20000-$$(date +%Y%m%d-%H%M%S)
	@$(BIN)/unbraid run random_feature_attention --size full --seeds 3 --parts curves --heads 250,1000,4000,20000 \
		--sizes 2000 --models RFA,BRFA --keep runs/studies/random_feature_attention-full \
		--out results/random_feature_attention/heads-$$(date +%Y%m%d-%H%M%S)

# the versions of a fresh environment; every extra is resolved, those that tests do not need are not installed
constraints:
	@$(PYTHON) tools/constraints.py

clean:
	@rm -rf $(VENV) site build .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
