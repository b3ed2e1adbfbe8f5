"""Gradients and buffers of every layout are captured, staged, saved and restored."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from stormproof import CheckpointRecovery, resumable
from stormproof.checkpoint.finite_check import is_finite
from stormproof.checkpoint.host_staging import HostStager
from stormproof.data.fingerprint import digest_tensor
from stormproof.lightning.layout import Layout
from stormproof.resume import extra_tensors, refused_state
from stormproof.resume.refused_state import RefusedState
from stormproof.resume.snapshot_state import CHECKPOINT_KEY
from tests.support.recovery_fits import BatchEndCallback
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_trainer

pytestmark = [
    *LIGHTNING_WARNING_FILTERS,
    pytest.mark.filterwarnings("ignore:.*[Ss]parse CSR.*"),
    pytest.mark.filterwarnings("ignore:.*quantize"),
    pytest.mark.filterwarnings("ignore:TypedStorage"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]
DENSE = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "dense": DENSE.clone,
    "COO": DENSE.to_sparse,
    "uncoalesced": lambda: torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 2)),
    "CSR": DENSE.to_sparse_csr,
    "quantized": lambda: torch.quantize_per_tensor(DENSE, 0.1, 0, torch.quint8),
    "quantized by channel": lambda: torch.quantize_per_channel(DENSE, DENSE[1] + 1, torch.zeros(2), 0, torch.qint8),
    "conjugated": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)], layout=torch.jagged),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)]),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_buffer_of_any_layout_is_restored(make: Callable[[], torch.Tensor]):
    def build() -> torch.nn.Module:
        module = torch.nn.Module()
        module.register_buffer("value", make(), persistent=False)
        return module

    buffers, file = extra_tensors.capture_buffers(build(), (), is_rank_zero=True), io.BytesIO()
    assert digest_tensor(HostStager().stage(buffers)["value"]) == digest_tensor(make())
    trainer, checkpoint = make_trainer(), {CHECKPOINT_KEY: {"buffers": buffers}}
    RefusedState().extract(trainer, Layout(), checkpoint)
    torch.save(HostStager().stage(checkpoint), file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    refused_state.restore(trainer, checkpoint)
    restored = build()
    extra_tensors.restore_buffers(restored, checkpoint[CHECKPOINT_KEY]["buffers"])
    assert digest_tensor(restored.get_buffer("value")) == digest_tensor(make())
    assert is_finite(restored.get_buffer("value"))


class SparseModule(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.embedding, self.layer = torch.nn.Embedding(6, 2, sparse=True), torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(self.layer(self.embedding(batch)).square().mean())
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SparseAdam(self.embedding.parameters()), torch.optim.Adam(self.layer.parameters())


def test_a_run_with_sparse_gradients_resumes_exactly(tmp_path: Path):
    def train(folder: Path, stop: int | None = None) -> SparseModule:
        def interrupt(step: int) -> None:
            if step == stop:
                raise RuntimeError("interrupted")

        recovery, module = CheckpointRecovery(folder, every_n_train_steps=2, async_save=False), SparseModule()
        trainer = make_trainer(callbacks=[BatchEndCallback(interrupt), recovery], max_epochs=2)
        loader = torch.utils.data.DataLoader(torch.arange(6), batch_size=2)
        trainer.fit(module, resumable(loader), ckpt_path=recovery.latest_checkpoint())
        return module

    whole = train(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="interrupted"):
        train(tmp_path / "killed", stop=8)
    resumed = train(tmp_path / "killed")
    assert torch.equal(whole.embedding.weight, resumed.embedding.weight)
    assert torch.equal(whole.layer.weight, resumed.layer.weight)
