"""Trains features with a domain adversary and two optimizers in Accelerate."""

import argparse
import os
import shutil

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F


def domains(step, size=128):
    """Returns examples of two domains, with labels in the first domain only."""
    g = torch.Generator().manual_seed(step)
    x = torch.randn(2, size, 32, generator=g)
    y = (x[0, :, :4].sum(1) > 0).long()
    return x[0], y, 1.2 * x[1] + 0.4


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--weight", type=float, default=0.3)
    parser.add_argument("--output", default="adversary")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(15)
    os.makedirs(args.output, exist_ok=True)
    accelerator = Accelerator(cpu=True)
    features = nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 96), nn.ReLU())
    classifier, adversary = nn.Linear(96, 2), nn.Sequential(nn.Linear(96, 512), nn.ReLU(), nn.Linear(512, 2))
    main_optimizer = torch.optim.Adam([*features.parameters(), *classifier.parameters()], lr=1e-3)
    adversary_optimizer = torch.optim.Adam(adversary.parameters(), lr=3e-3)
    features, classifier, adversary = accelerator.prepare(features, classifier, adversary)
    main_optimizer = accelerator.prepare(main_optimizer)
    step = 0
    saved = sorted(os.listdir(args.output))
    saved = [name for name in saved if name.isdigit()]
    if saved:
        accelerator.load_state(os.path.join(args.output, saved[-1]))
        step = int(saved[-1])
    while step < args.steps:
        source, y, target = domains(step)
        domain = torch.cat([torch.zeros(len(source)), torch.ones(len(target))]).long()
        both = features(torch.cat([source, target]))
        adversary_loss = F.cross_entropy(adversary(both.detach()), domain)
        adversary_optimizer.zero_grad()
        accelerator.backward(adversary_loss)
        adversary_optimizer.step()
        task_loss = F.cross_entropy(classifier(both[: len(source)]), y)
        loss = task_loss - args.weight * F.cross_entropy(adversary(both), domain)
        main_optimizer.zero_grad()
        accelerator.backward(loss)
        main_optimizer.step()
        step += 1
        if step % 7 == 0:
            temporary = os.path.join(args.output, "tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            accelerator.save_state(temporary)
            os.replace(temporary, os.path.join(args.output, f"{step:06d}"))
            accelerator.print(f"{step} task {task_loss.item():.4f} domain {adversary_loss.item():.4f}")
    states = {"features": features.state_dict(), "adversary": adversary.state_dict()}
    torch.save(states, os.path.join(args.output, "final.pt"))


if __name__ == "__main__":
    main()
