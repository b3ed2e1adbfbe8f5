"""Trains a GRU on the adding problem: the sum of two marked numbers of a sequence."""

import os

import torch
import torch.nn as nn

torch.set_num_threads(1)
torch.manual_seed(42)


class Adder(nn.Module):
    def __init__(self, hidden_size=80):
        super().__init__()
        self.rnn = nn.GRU(2, hidden_size, batch_first=True)
        self.fc = nn.Linear(hidden_size, 1)

    def forward(self, x):
        _, h = self.rnn(x)
        return self.fc(h[-1]).squeeze(-1)


def adding_batch(i, batch_size=40, length=20):
    g = torch.Generator().manual_seed(i)
    values = torch.rand(batch_size, length, generator=g)
    marks = torch.zeros(batch_size, length)
    first = torch.randint(0, length // 2, (batch_size,), generator=g)
    second = torch.randint(length // 2, length, (batch_size,), generator=g)
    rows = torch.arange(batch_size)
    marks[rows, first] = 1
    marks[rows, second] = 1
    return torch.stack([values, marks], dim=2), (values * marks).sum(1)


NUM_STEPS = 120
LOG_EVERY = 20
CHECKPOINT_EVERY = 11
CHECKPOINT = "adding_gru.pth"

model = Adder()
optimizer = torch.optim.Adam(model.parameters(), lr=0.003, amsgrad=True)
criterion = nn.MSELoss()
start_step = 0

if os.path.isfile(CHECKPOINT):
    print("=> loading checkpoint", CHECKPOINT)
    checkpoint = torch.load(CHECKPOINT)
    start_step = checkpoint["step"]
    model.load_state_dict(checkpoint["state_dict"])
    print("=> loaded checkpoint, step", start_step)

for i in range(start_step, NUM_STEPS):
    inputs, targets = adding_batch(i)
    outputs = model(inputs)
    loss = criterion(outputs, targets)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.5)
    optimizer.step()
    if (i + 1) % LOG_EVERY == 0:
        print(f"Step [{i + 1}/{NUM_STEPS}], Loss: {loss.item():.4f}")
    if (i + 1) % CHECKPOINT_EVERY == 0 or i + 1 == NUM_STEPS:
        torch.save(
            {"step": i + 1, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, CHECKPOINT + ".tmp"
        )
        os.replace(CHECKPOINT + ".tmp", CHECKPOINT)
