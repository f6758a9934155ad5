"""EEG and SCAN: a beta-VAE of event-related potentials without labels, and clinical labels tied to its latents."""

from importlib import import_module

from unbraid.core.system import Card, ClaimSpec

CARD = Card(
    slug="eeg_scan",
    title="Representation learning for improved interpretability and classification accuracy of clinical factors "
    "from EEG",
    arxiv="2010.15274",
    year=2020,
    field="neuro",
    verbs=("see", "separate"),
    claims=(
        ClaimSpec(
            "denoise", "The reconstruction of a single trial is nearer to the potential beneath than the trial is.",
            "abstract: denoised potentials from single trajectories",
        ),
        ClaimSpec(
            "individual", "What the reconstruction adds is the subject's own, not only the mean of all subjects.",
            "a check of this project's: correlation after the grand average is subtracted",
        ),
        ClaimSpec(
            "invented", "Of noise alone the code makes the mean potential and nothing of the subject's own.",
            "a check of this project's: the null of denoising",
        ),
        ClaimSpec(
            "depression", "Codes tell depression at least as well as the late positive potential does.",
            "abstract: beats the canonical hand-engineered baseline",
        ),
        ClaimSpec(
            "sex", "Codes tell a factor that the late positive potential does not measure.",
            "abstract: several factors; here a trait in the N2",
        ),
        ClaimSpec(
            "age", "Codes tell age, which here delays a wave, as well as a linear model of the raw signal.",
            "abstract: age; here a delay of the P1",
        ),
        ClaimSpec(
            "names", "SCAN names the latent that follows a label best, without being told.",
            "abstract: clinically meaningful latents found automatically",
        ),
        ClaimSpec(
            "shuffled", "Labels shuffled over subjects separate no latent.", "a check of this project's: the null",
        ),
        ClaimSpec(
            "remap", "A new scheme of labels needs a new SCAN only, in a fraction of the time, at no loss.",
            "abstract: quick re-mapping to new labels",
        ),
        ClaimSpec(
            "delay", "With the noise made white first, the code holds the delay of a wave that it misses without.",
            "not in the paper: a remedy for what the method sheet found missing",
        ),
    ),
)  # fmt: skip

SYSTEM = "unbraid.systems.eeg_scan.system:EEGScan"
RUN = "unbraid.systems.eeg_scan.study:run"

_HOME = {
    "EEGScan": "system",
    "ScanHead": "head",
    "train_head": "training",
    "matched": "matching",
    "khot": "head",
    "lpp_score": "baselines",
    "accuracy": "baselines",
    "classify": "baselines",
    "folds": "baselines",
    "interval": "baselines",
    "rank_models": "ranking",
    "pca": "controls",
    "autoencoder": "controls",
    "xdawn": "controls",
    "surrogates": "baselines",
    "from_epochs": "recordings",
    "read_epochs": "recordings",
    "read_bids": "recordings",
    "to_epochs": "recordings",
    "to_evoked": "recordings",
    "topographies": "recordings",
    "Recombiner": "recombining",
    "train_recombiner": "recombining",
    "recombine": "recombining",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
