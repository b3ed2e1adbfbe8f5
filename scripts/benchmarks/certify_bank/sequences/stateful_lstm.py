"""Trains a stateful LSTM on long noisy oscillations with truncated backpropagation through time."""

import os

import torch
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(11)

WINDOW, LANES, STEPS = 20, 24, 110
PATH = "stateful/latest.pt"


def make_signals():
    """Returns damped oscillations that start again at random times."""
    g = torch.Generator().manual_seed(0)
    time = torch.arange(WINDOW * STEPS + 1.0)
    frequency = 0.05 + 0.25 * torch.rand(LANES, 1, generator=g)
    envelope = 1 + 0.8 * torch.sin(time * 0.011 + 6 * torch.rand(LANES, 1, generator=g))
    return (envelope * torch.sin(frequency * time) + 0.1 * torch.randn(LANES, len(time), generator=g))[..., None]


class Forecaster(nn.Module):
    def __init__(self, hidden=64):
        super().__init__()
        self.lstm = nn.LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x, state=None):
        y, state = self.lstm(x, state)
        return self.head(y), state


signals = make_signals()
model = Forecaster()
optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
hidden = None
start = 0
os.makedirs("stateful", exist_ok=True)
if os.path.exists(PATH):
    saved = torch.load(PATH)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    start = saved["window"]

for window in range(start, STEPS):
    begin = window * WINDOW
    x = signals[:, begin : begin + WINDOW]
    y = signals[:, begin + 1 : begin + WINDOW + 1]
    prediction, hidden = model(x, hidden)
    hidden = tuple(h.detach() for h in hidden)
    loss = nn.functional.smooth_l1_loss(prediction, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (window + 1) % 9 == 0 or window + 1 == STEPS:
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "window": window + 1}
        torch.save(saved, PATH + ".tmp")
        os.replace(PATH + ".tmp", PATH)
        print(f"window {window + 1}: {loss.item():.5f}")
