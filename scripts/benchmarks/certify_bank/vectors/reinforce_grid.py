"""Trains a policy with REINFORCE on a slippery grid."""

import argparse
import os
import random

import torch
from torch import nn

MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))


class Grid:
    def __init__(self, size=5, slip=0.15):
        self.size, self.slip = size, slip

    def reset(self):
        self.place = (random.randrange(self.size), 0)
        return self.features()

    def features(self):
        x = torch.zeros(self.size * self.size)
        x[self.place[0] * self.size + self.place[1]] = 1
        return x

    def move(self, action):
        if random.random() < self.slip:
            action = random.randrange(4)
        row, column = (self.place[i] + MOVES[action][i] for i in range(2))
        self.place = (min(max(row, 0), self.size - 1), min(max(column, 0), self.size - 1))
        goal = self.place == (self.size - 1, self.size - 1)
        return self.features(), 1.0 if goal else -0.05, goal


def episode(grid, policy, limit=25):
    x, log_probs, rewards = grid.reset(), [], []
    for _ in range(limit):
        logits = policy(x)
        action = torch.multinomial(logits.detach().softmax(0), 1).item()
        log_probs.append(logits.log_softmax(0)[action])
        x, reward, done = grid.move(action)
        rewards.append(reward)
        if done:
            break
    returns, total = [], 0.0
    for reward in reversed(rewards):
        total = reward + 0.97 * total
        returns.insert(0, total)
    return torch.stack(log_probs), torch.tensor(returns)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=70)
    parser.add_argument("--episodes", type=int, default=3, help="episodes per update")
    parser.add_argument("--checkpoint", default="reinforce.pt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    grid = Grid()
    policy = nn.Sequential(nn.Linear(25, 128), nn.Tanh(), nn.Linear(128, 4))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    baseline, update = 0.0, 0
    if os.path.exists(args.checkpoint):
        ckpt = torch.load(args.checkpoint)
        policy.load_state_dict(ckpt["policy"])
        optimizer.load_state_dict(ckpt["optimizer"])
        torch.set_rng_state(ckpt["torch_rng"])
        baseline, update = ckpt["baseline"], ckpt["update"]
    while update < args.updates:
        losses = []
        for _ in range(args.episodes):
            log_probs, returns = episode(grid, policy)
            losses.append(-(log_probs * (returns - baseline)).sum())
            baseline += 0.1 * (returns[0].item() - baseline)
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        update += 1
        if update % 6 == 0 or update == args.updates:
            ckpt = {
                "policy": policy.state_dict(),
                "optimizer": optimizer.state_dict(),
                "torch_rng": torch.get_rng_state(),
                "baseline": baseline,
                "update": update,
            }
            torch.save(ckpt, args.checkpoint + ".tmp")
            os.replace(args.checkpoint + ".tmp", args.checkpoint)
            print(f"update {update}: baseline {baseline:.3f}")


if __name__ == "__main__":
    main()
