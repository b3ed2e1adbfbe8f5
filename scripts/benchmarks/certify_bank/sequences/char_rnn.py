"""Trains a character-level RNN on a long text that it reads once, from the beginning to the end."""

import argparse
import this
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

DECODED = "".join(this.d.get(c, c) for c in this.s)


class TextStream:
    """Reads a text in chunks and starts again at its end."""

    def __init__(self, text, batch, length):
        self.vocabulary = sorted(set(text))
        ids = torch.tensor([self.vocabulary.index(c) for c in text])
        self.rows = ids[: len(ids) // batch * batch].view(batch, -1)
        self.length = length
        self.position = 0

    def next_chunk(self):
        if self.position + self.length + 1 > self.rows.shape[1]:
            self.position = 0
        chunk = self.rows[:, self.position : self.position + self.length + 1]
        self.position += self.length
        return chunk[:, :-1], chunk[:, 1:]


class CharRNN(nn.Module):
    def __init__(self, vocabulary, width):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, ids):
        return self.out(self.rnn(self.embedding(ids))[0])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--length", type=int, default=12)
    parser.add_argument("--save-interval", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("char_rnn"))
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    args.folder.mkdir(exist_ok=True)
    stream = TextStream(DECODED * 6, batch=16, length=args.length)
    model = CharRNN(len(stream.vocabulary), args.width)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    file = args.folder / "model.pt"
    step = 0
    if file.exists():
        state = torch.load(file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    while step < args.steps:
        inputs, targets = stream.next_chunk()
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % args.save_interval == 0 or step == args.steps:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
            }
            torch.save(state, file.with_suffix(".tmp"))
            file.with_suffix(".tmp").replace(file)
            print(f"{step} bits per character: {loss.item() / 0.6931:.3f}")


if __name__ == "__main__":
    main()
