"""Continues generated melodies with an LSTM. One checkpoint per epoch."""

import os
import random
from dataclasses import dataclass

import torch
import torch.nn as nn


@dataclass
class Config:
    songs: int = 360
    length: int = 24
    pitches: int = 28
    batch: int = 20
    epochs: int = 9
    lr: float = 3e-3
    ckpt: str = "melody/ckpt.pt"


class MelodyNet(nn.Module):
    def __init__(self, pitches, dim=160):
        super().__init__()
        self.emb = nn.Embedding(pitches, dim)
        self.rnn = nn.LSTM(dim, dim, num_layers=2, batch_first=True)
        self.out = nn.Linear(dim, pitches)

    def forward(self, notes):
        hidden, _ = self.rnn(self.emb(notes))
        return self.out(hidden)


def compose(cfg):
    """Scales with a random root, a random stride and a few wrong notes."""
    g = torch.Generator().manual_seed(11)
    root = torch.randint(0, cfg.pitches, (cfg.songs, 1), generator=g)
    stride = torch.randint(1, 6, (cfg.songs, 1), generator=g)
    notes = (root + stride * torch.arange(cfg.length + 1)) % cfg.pitches
    wrong = torch.rand(notes.shape, generator=g) < 0.08
    return torch.where(wrong, torch.randint(0, cfg.pitches, notes.shape, generator=g), notes)


def save(cfg, **state):
    os.makedirs(os.path.dirname(cfg.ckpt), exist_ok=True)
    torch.save(state, cfg.ckpt + ".part")
    os.rename(cfg.ckpt + ".part", cfg.ckpt)


def main(cfg):
    torch.set_num_threads(1)
    torch.manual_seed(5)
    songs = compose(cfg)
    net = MelodyNet(cfg.pitches)
    opt = torch.optim.RMSprop(net.parameters(), lr=cfg.lr, momentum=0.5)
    playlist = list(range(cfg.songs))
    dj = random.Random(2024)
    epoch = 0
    if os.path.isfile(cfg.ckpt):
        ckpt = torch.load(cfg.ckpt, weights_only=False)
        net.load_state_dict(ckpt["net"])
        opt.load_state_dict(ckpt["opt"])
        dj.setstate(ckpt["dj"])
        epoch = ckpt["epoch"]
    while epoch < cfg.epochs:
        dj.shuffle(playlist)
        total = 0.0
        for i in range(0, len(playlist), cfg.batch):
            notes = songs[playlist[i : i + cfg.batch]]
            logits = net(notes[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), notes[:, 1:].flatten())
            opt.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            opt.step()
            total += loss.item()
        epoch += 1
        print(f"[{epoch}/{cfg.epochs}] {total * cfg.batch / len(playlist):.3f}")
        save(cfg, net=net.state_dict(), opt=opt.state_dict(), dj=dj.getstate(), epoch=epoch)


if __name__ == "__main__":
    main(Config())
