"""Lines of code that restore a component, by framework."""

from __future__ import annotations

from collections.abc import Iterable

from stormproof.replay.comparison.causes import kind_of

LIGHTNING_LINES = (
    'recovery = CheckpointRecovery("checkpoints", every_n_train_steps=50)',
    "trainer = pl.Trainer(callbacks=[recovery])",
    "trainer.fit(module, resumable(loader), ckpt_path=recovery.latest_checkpoint())",
)
"""Three lines that restore most state in a Lightning script."""

LIGHTNING = "Use `CheckpointRecovery` and `resumable` from Stormproof."
"""Fix of most components in a Lightning script."""

FIXES: dict[str, dict[str, str]] = {
    "parameters": {
        "torch": "`model.load_state_dict(checkpoint['model'])`, without `strict=False`",
        "lightning": "Pass `ckpt_path=` to `trainer.fit`.",
        "transformers": "`trainer.train(resume_from_checkpoint=True)`",
        "accelerate": "`accelerator.load_state(folder)` after `accelerator.prepare(…)`",
    },
    "optimizer": {
        "torch": "`optimizer.load_state_dict(checkpoint['optimizer'])` after the parameters are on their device",
        "lightning": "Do not use `save_weights_only=True`, and pass `ckpt_path=` to `trainer.fit`.",
        "transformers": "Do not use `save_only_model=True`.",
        "accelerate": "Pass the optimizer to `accelerator.prepare(…)`; save with `accelerator.save_state(folder)`.",
    },
    "scheduler": {
        "torch": "`scheduler.load_state_dict(checkpoint['scheduler'])`",
        "lightning": "Return the scheduler from `configure_optimizers`.",
        "transformers": "Do not use `save_only_model=True`, and keep `max_steps` and `num_train_epochs`.",
        "accelerate": "Pass the scheduler to `accelerator.prepare(…)` or `accelerator.register_for_checkpointing(…)`.",
    },
    "learning_rate": {
        "torch": "Save the step that the learning rate is computed from, and the state of the scheduler.",
        "lightning": "Compute it in a scheduler that `configure_optimizers` returns.",
        "transformers": "Keep `max_steps`, `num_train_epochs` and `warmup_steps` when you resume.",
        "accelerate": "Pass the scheduler to `accelerator.prepare(…)`.",
    },
    "hyperparameters": {
        "torch": "Load the state of the optimizer after you set its options, or save the options.",
        "lightning": LIGHTNING,
    },
    "scaler": {
        "torch": "`scaler.load_state_dict(checkpoint['scaler'])`",
        "lightning": "Use `precision='16-mixed'` instead of a scaler of your own.",
        "transformers": "Update transformers; current versions save `scaler.pt`.",
        "accelerate": "Use `Accelerator(mixed_precision='fp16')` and `accelerator.save_state(folder)`.",
    },
    "buffers": {
        "torch": "Save `model.state_dict()`, not only `model.parameters()`; register buffers with `persistent=True`.",
        "lightning": LIGHTNING,
    },
    "averaged": {
        "torch": "`averaged_model.load_state_dict(checkpoint['averaged'])`",
        "lightning": "Use `EMAWeightAveraging` or `StochasticWeightAveraging` with `CheckpointRecovery`.",
        "transformers": "Save the averaged model in a callback and load it in `on_train_begin`.",
        "accelerate": "`accelerator.register_for_checkpointing(averaged_model)`",
    },
    "frozen": {
        "torch": "Set `requires_grad` again after loading, from the step or epoch in the checkpoint.",
        "lightning": LIGHTNING,
    },
    "mode": {"torch": "Call `model.train()` after loading and after each validation."},
    "data/indices": {
        "torch": (
            "Use torchdata's `StatefulDataLoader`. Or seed a `torch.Generator` with the epoch, skip the used "
            "batches, and call `sampler.set_epoch(epoch)`."
        ),
        "lightning": "Wrap the loader: `resumable(loader)`.",
        "transformers": "Do not use `ignore_data_skip=True`, and set `data_seed`.",
        "accelerate": "`DataLoaderConfiguration(use_stateful_dataloader=True)`, or `accelerator.skip_first_batches(…)`",
    },
    "data/batches": {
        "torch": "Seed the augmentation with the epoch and the sample index, or restore the generator that it uses.",
        "lightning": "Wrap the loader: `resumable(loader)`.",
    },
    "data/count": {
        "torch": "Save only after an optimizer step, not during gradient accumulation.",
        "lightning": LIGHTNING,
        "accelerate": "Save when `accelerator.sync_gradients` is true.",
    },
    "rng/generators": {
        "torch": (
            "Save the state of the generator and restore it: `get_state()` of torch, `bit_generator.state` of NumPy, "
            "`getstate()` of Python."
        ),
        "lightning": "Wrap the loader: `resumable(loader)`.",
    },
    "rng/workers": {
        "torch": "Seed the random transforms with the epoch and the sample index, not with the worker seed.",
        "lightning": "Wrap the loader: `resumable(loader)`.",
    },
    "rng/python": {
        "torch": "Save `random.getstate()` and restore it with `random.setstate(…)`.",
        "lightning": LIGHTNING,
        "transformers": "Keep `rng_state.pth` in the checkpoint folder, and resume with the same number of ranks.",
    },
    "rng/numpy": {
        "torch": "Save `numpy.random.get_state()` and restore it with `numpy.random.set_state(…)`.",
        "lightning": LIGHTNING,
        "transformers": "Keep `rng_state.pth` in the checkpoint folder, and resume with the same number of ranks.",
    },
    "rng/torch": {
        "torch": "Save `torch.get_rng_state()` and restore it after the loader has drawn its seed.",
        "lightning": LIGHTNING,
        "transformers": "Keep `rng_state.pth` in the checkpoint folder, and resume with the same number of ranks.",
    },
    "rng/cuda": {
        "torch": "Save `torch.cuda.get_rng_state_all()` and restore it with `torch.cuda.set_rng_state_all(…)`.",
        "lightning": LIGHTNING,
    },
    "variables": {
        "torch": "Save the variable in the checkpoint and restore it.",
        "lightning": "Save it in `state_dict` or `on_save_checkpoint`, or register it as a buffer.",
        "transformers": (
            "Save it in a callback that is an `ExportableState`; pass `restore_callback_states_from_checkpoint=True`."
        ),
        "accelerate": "Pass an object with `state_dict` to `accelerator.register_for_checkpointing(…)`.",
    },
    "length": {"torch": "Save the epoch and the step, and train until the same last step."},
    "loss": {"torch": "Search for state that the loss depends on and that is not in the checkpoint."},
}
"""Fixes by kind of component and framework. ``torch`` is the fallback of the others."""


def fix_for(component: str, framework: str) -> str:
    """Returns how to restore a component.

    Args:
        component: Component.
        framework: ``torch``, ``lightning``, ``transformers`` or ``accelerate``.
    """
    fixes = FIXES.get(kind_of(component).removeprefix("before/"), FIXES["loss"])
    return fixes.get(framework, fixes["torch"])


def fixes_for(components: Iterable[str], framework: str) -> list[tuple[str, str]]:
    """Returns components and their fixes, without repetition of a kind."""
    first: dict[str, tuple[str, str]] = {}
    for name in components:
        first.setdefault(kind_of(name), (name, fix_for(name, framework)))
    return list(first.values())
