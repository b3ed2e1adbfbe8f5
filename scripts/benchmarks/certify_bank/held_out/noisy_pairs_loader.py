"""Siamese network on pairs of noisy views. Worker processes draw the noise."""

import os

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler


class TwoViews(Dataset):
    """Returns two noisy views of a prototype and the number of the prototype."""

    def __init__(self, prototypes=480, dim=96):
        self.data = torch.randn(prototypes, dim, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        clean = self.data[i]
        return clean + 0.4 * torch.randn(clean.shape), clean + 0.4 * torch.randn(clean.shape), i


class Rotation(Sampler):
    """Starts each epoch at another element."""

    def __init__(self, size):
        self.size, self.epoch = size, 0

    def __len__(self):
        return self.size

    def __iter__(self):
        begin = 37 * self.epoch
        return iter([(7 * i + begin) % self.size for i in range(self.size)])


def info_nce(a, b, temperature=0.2):
    a, b = nn.functional.normalize(a, dim=1), nn.functional.normalize(b, dim=1)
    return nn.functional.cross_entropy(a @ b.T / temperature, torch.arange(len(a)))


def main(epochs=8, batch_size=48, out="siamese"):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.makedirs(out, exist_ok=True)
    data = TwoViews()
    order = Rotation(len(data))
    g = torch.Generator()
    g.manual_seed(0)
    loader = DataLoader(data, batch_size=batch_size, sampler=order, num_workers=2, generator=g)
    encoder = nn.Sequential(nn.Linear(96, 960), nn.ELU(), nn.Linear(960, 960), nn.ELU(), nn.Linear(960, 32))
    opt = torch.optim.AdamW(encoder.parameters(), lr=2e-3)
    path = os.path.join(out, "state.pt")
    done = 0
    if os.path.exists(path):
        state = torch.load(path)
        encoder.load_state_dict(state["encoder"])
        opt.load_state_dict(state["opt"])
        done = state["done"]
    for epoch in range(done, epochs):
        order.epoch = epoch
        for a, b, _ in loader:
            loss = info_nce(encoder(a), encoder(b))
            opt.zero_grad()
            loss.backward()
            opt.step()
        print(f"{epoch}: {loss.item():.4f}")
        state = {"encoder": encoder.state_dict(), "opt": opt.state_dict(), "done": epoch + 1}
        torch.save(state, path + ".tmp")
        os.replace(path + ".tmp", path)


if __name__ == "__main__":
    main()
