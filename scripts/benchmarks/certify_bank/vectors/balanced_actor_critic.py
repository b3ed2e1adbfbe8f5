"""Trains an actor and a critic on a noisy pendulum with a replay buffer, target networks and two optimizers."""

import argparse
import copy
import os
from collections import deque

import numpy as np
import torch
from torch import nn


class Pendulum:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.state = np.array([np.pi, 0.0])

    def observe(self):
        angle, speed = self.state
        return [float(np.cos(angle)), float(np.sin(angle)), float(speed)]

    def push(self, torque):
        angle, speed = self.state
        speed += 0.05 * (15 * np.sin(angle) + 3 * torque) + 0.02 * self.rng.normal()
        speed = float(np.clip(speed, -8, 8))
        self.state = np.array([angle + 0.05 * speed, speed])
        return -float(((self.state[0] + np.pi) % (2 * np.pi) - np.pi) ** 2 + 0.1 * speed**2)


def mlp(inputs, outputs, width=128):
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


class DDPG:
    def __init__(self):
        self.actor, self.critic = nn.Sequential(mlp(3, 1), nn.Tanh()), mlp(4, 1)
        self.actor_target, self.critic_target = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=5e-4)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=1e-3)
        self.buffer = deque(maxlen=150)
        self.updates = 0

    def parts(self):
        return {name: part for name, part in vars(self).items() if hasattr(part, "state_dict")}

    def update(self, batch=64, tau=0.02):
        rows = torch.randint(0, len(self.buffer), (batch,)).tolist()
        obs, act, rew, nxt = (torch.tensor(c) for c in zip(*(self.buffer[r] for r in rows), strict=True))
        with torch.no_grad():
            goal = rew + 0.98 * self.critic_target(torch.cat([nxt, self.actor_target(nxt)], 1))[:, 0]
        critic_loss = nn.functional.mse_loss(self.critic(torch.cat([obs, act[:, None]], 1))[:, 0], goal)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        actor_loss = -self.critic(torch.cat([obs, self.actor(obs)], 1)).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        for slow, fast in ((self.actor_target, self.actor), (self.critic_target, self.critic)):
            for s, f in zip(slow.parameters(), fast.parameters(), strict=True):
                s.data.lerp_(f.data, tau)
        self.updates += 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--file", default="ddpg.pt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    agent, world = DDPG(), Pendulum(0)
    if os.path.exists(args.file):
        saved = torch.load(args.file, weights_only=False)
        for name, part in agent.parts().items():
            part.load_state_dict(saved[name])
        agent.buffer.extend(saved["buffer"])
        agent.updates = saved["updates"]
        world.state, world.rng.bit_generator.state = saved["world"], saved["noise"]
        torch.set_rng_state(saved["torch"])
    while agent.updates < args.updates:
        obs = world.observe()
        with torch.no_grad():
            torque = float(agent.actor(torch.tensor(obs)) + 0.3 * torch.randn(1))
        reward = world.push(torque)
        agent.buffer.append((obs, torque, reward, world.observe()))
        agent.update()
        if agent.updates % 9 == 0 or agent.updates == args.updates:
            saved = {name: part.state_dict() for name, part in agent.parts().items()}
            saved.update(buffer=list(agent.buffer), updates=agent.updates, world=world.state)
            saved.update(noise=world.rng.bit_generator.state, torch=torch.get_rng_state())
            torch.save(saved, args.file + ".tmp")
            os.replace(args.file + ".tmp", args.file)


if __name__ == "__main__":
    main()
