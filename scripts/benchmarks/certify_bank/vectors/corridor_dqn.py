"""Trains a DQN agent in a corridor with a replay buffer and a target network."""

import copy
import os
import pickle
import random
from collections import deque

import torch
from torch import nn

STEPS, BATCH, GAMMA = 200, 64, 0.95
FILE = "dqn/agent.pkl"


class Corridor:
    """The agent starts in the middle of 15 cells and is paid at the right end."""

    def __init__(self):
        self.cell = 7

    def observe(self):
        return [float(i == self.cell) for i in range(15)]

    def act(self, action):
        slip = random.random() < 0.1
        self.cell += 1 if (action == 1) != slip else -1
        done = self.cell in {0, 14}
        reward = {0: -0.5, 14: 1.0}.get(self.cell, -0.01)
        if done:
            self.cell = 7
        return reward, done


class Agent:
    def __init__(self):
        self.q = nn.Sequential(nn.Linear(15, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))
        self.target = copy.deepcopy(self.q)
        self.optimizer = torch.optim.Adam(self.q.parameters(), lr=1e-3)
        self.memory = deque(maxlen=1000)
        self.steps = 0

    def choose(self, observation):
        epsilon = max(0.05, 1 - self.steps / 120)
        if random.random() < epsilon:
            return random.randrange(2)
        with torch.no_grad():
            return int(self.q(torch.tensor(observation)).argmax())

    def learn(self):
        batch = random.choices(self.memory, k=BATCH)
        obs, action, reward, following, done = (torch.tensor(column) for column in zip(*batch, strict=True))
        with torch.no_grad():
            goal = reward + GAMMA * self.target(following).max(1).values * ~done
        value = self.q(obs).gather(1, action[:, None])[:, 0]
        loss = nn.functional.smooth_l1_loss(value, goal)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        if self.steps % 20 == 0:
            self.target.load_state_dict(self.q.state_dict())
        return loss.item()


def save(agent, world):
    content = {name: getattr(agent, name).state_dict() for name in ("q", "target", "optimizer")}
    content.update(steps=agent.steps, cell=world.cell, random=random.getstate())
    with open(FILE + "~", "wb") as f:
        pickle.dump(content, f)
    os.replace(FILE + "~", FILE)


def load(agent, world):
    with open(FILE, "rb") as f:
        content = pickle.load(f)
    for name in ("q", "target", "optimizer"):
        getattr(agent, name).load_state_dict(content[name])
    agent.steps, world.cell = content["steps"], content["cell"]
    random.setstate(content["random"])


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    os.makedirs("dqn", exist_ok=True)
    agent, world = Agent(), Corridor()
    if os.path.exists(FILE):
        load(agent, world)
    while agent.steps < STEPS:
        observation = world.observe()
        action = agent.choose(observation)
        reward, done = world.act(action)
        agent.memory.append((observation, action, reward, world.observe(), done))
        loss = agent.learn()
        if agent.steps % 15 == 0:
            save(agent, world)
            print(f"step {agent.steps} loss {loss:.4f}")
    torch.save({"q": agent.q.state_dict()}, "dqn/final.pt")


if __name__ == "__main__":
    main()
