"""Make digits.safetensors: a real teacher and a smaller real student on handwritten digits.

The teacher is a small conv net trained with cross-entropy and InfoNCE. The student is a
small MLP trained with cross-entropy alone, so that its embedding still has something
relational to learn; only its projection head has seen the teacher (through RRD).

    python make_digits.py [output path]
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

SEED, HELD_OUT, BATCH, PROJECTION = 7, 512, 64, 32
QUEUE = 1024  # an epoch has 1280 images, so the queue it ends with holds no image twice
TAU_TEACHER, TAU_STUDENT, TAU_INFONCE = 0.02, 0.1, 0.2
METADATA = {
    "source": "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine "
    "Learning Repository, 1998 (test set, as in sklearn.datasets.load_digits)",
    "licence": "MIT OR Apache-2.0; made from data under CC BY 4.0",
    "script": "examples/data/make_digits.py",
}


class Net(nn.Module):
    """A trunk that ends in the embedding, a linear classifier and a projection head."""

    def __init__(self, trunk: nn.Module, width: int, head: nn.Module):
        super().__init__()
        self.trunk, self.classifier, self.head = trunk, nn.Linear(width, 10), head


def make_teacher() -> Net:
    trunk = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 128),
    )
    head = nn.Sequential(nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, PROJECTION))
    return Net(trunk, 128, head)


def augment(x: Tensor) -> Tensor:
    """Shift every image by up to a pixel each way, then add noise."""
    padded = F.pad(x, (1, 1, 1, 1))
    shifts = torch.stack([padded[:, :, r : r + 8, c : c + 8] for r in range(3) for c in range(3)])
    return shifts[torch.randint(9, (len(x),)), torch.arange(len(x))] + 0.1 * torch.randn_like(x)


def batches(n: int) -> list[Tensor]:
    """One epoch of shuffled, full batches; the few images left over are dropped."""
    return [b for b in torch.randperm(n).split(BATCH) if len(b) == BATCH]


def step(opt: torch.optim.Optimizer, loss: Tensor) -> None:
    opt.zero_grad()
    loss.backward()
    opt.step()


def info_nce(a: Tensor, b: Tensor) -> Tensor:
    """Two views of an image are each other's positive; every other view is a negative."""
    v = F.normalize(torch.cat([a, b]))
    sim = (v @ v.T / TAU_INFONCE).masked_fill(torch.eye(len(v), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(sim, torch.arange(len(v)).roll(len(a)))


def train(net: Net, x: Tensor, y: Tensor, contrast: bool, epochs: int = 40) -> None:
    """Cross-entropy; with `contrast`, on two augmented views that InfoNCE on the projections ties together."""
    opt = torch.optim.AdamW(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, epochs)
    for _ in range(epochs):
        for i in batches(len(x)):
            views = [augment(x[i]), augment(x[i])] if contrast else [x[i]]
            e = net.trunk(torch.cat(views))
            loss = F.cross_entropy(net.classifier(e), y[i].repeat(len(views)))
            if contrast:
                loss = loss + info_nce(*net.head(e).split(BATCH))
            step(opt, loss)
        schedule.step()


def rrd(teacher: Tensor, student: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and KL divergence between the two distributions over the queue."""
    log_p = F.log_softmax(F.normalize(teacher) @ queue.T / TAU_TEACHER, 1)
    log_q = F.log_softmax(F.normalize(student) @ queue.T / TAU_STUDENT, 1)
    return -(log_p.exp() * log_q).sum(1).mean(), (log_p.exp() * (log_p - log_q)).sum(1).mean()


def train_student_head(student: Net, teacher: Net, x: Tensor, epochs: int = 40) -> Tensor:
    """Train the student's projection on a frozen embedding; return the last queue, oldest first."""
    with torch.no_grad():
        embedding, keys = student.trunk(x), teacher.head(teacher.trunk(x))
    queue = torch.empty(0, PROJECTION)
    opt = torch.optim.AdamW(student.head.parameters(), 3e-3)
    for _ in range(epochs):
        for i in batches(len(x)):
            # Enqueue first: each query then finds its own key in the queue.
            queue = torch.cat([queue, F.normalize(keys[i])])[-QUEUE:]
            step(opt, rrd(keys[i], student.head(embedding[i]), queue)[0])
    return queue


def distances(e: Tensor) -> Tensor:
    return torch.cdist(e, e, compute_mode="donot_use_mm_for_euclid_dist")


def rkd_distance(s: Tensor, t: Tensor) -> float:
    """Mean over all n^2 ordered pairs; the mean that scales distances leaves the diagonal out."""
    scaled = [d / (d.sum() / (len(d) * (len(d) - 1))) for d in map(distances, (s, t))]
    return F.huber_loss(*scaled).item()


def rkd_angle(s: Tensor, t: Tensor) -> float:
    """Mean over all n^3 ordered triples, one vertex at a time to stay small."""
    total = 0.0
    for v in range(len(s)):
        cosines = [(u := F.normalize(e - e[v])) @ u.T for e in (s, t)]
        total += F.huber_loss(*cosines).item()
    return total / len(s)


def save(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write safetensors by hand: the library does not fix the order of metadata keys, so bytes could differ."""
    header, at = {"__metadata__": metadata}, 0
    for name, a in tensors.items():
        dtype = {"float32": "F32", "uint8": "U8"}[a.dtype.name]
        header[name] = {"dtype": dtype, "shape": a.shape, "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the f32 data aligned
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in tensors.values()))


def report(d: dict[str, Tensor], y: Tensor) -> None:
    """Print sanity figures, in f64, for the f32 values that were written."""
    for who in ("student", "teacher"):
        pairs = distances(d[f"{who}.embedding"]).fill_diagonal_(torch.inf)
        accuracy = (d[f"{who}.logits"].argmax(1) == y).double().mean()
        recall = (y[pairs.argmin(1)] == y).double().mean()
        shortest, longest = pairs.min(), pairs.fill_diagonal_(0).max()
        print(f"{who}: accuracy {accuracy:.4f}, recall@1 {recall:.4f}, distances {shortest:.6f} to {longest:.6f}")
    print("duplicate rows:", {k: len(v) - len(v.unique(dim=0)) for k, v in d.items()})
    s, t = d["student.embedding"], d["teacher.embedding"]
    print(f"RKD distance {rkd_distance(s, t):.9f}, angle {rkd_angle(s, t):.9f}")
    s, t = d["student.projection"], d["teacher.projection"]
    enqueued = torch.cat([d["queue"], F.normalize(t)])[-QUEUE:]
    for name, queue in (("as stored", d["queue"]), ("with the held-out keys enqueued", enqueued)):
        ce, kl = rrd(t, s, queue)
        print(f"RRD, queue {name}: cross-entropy {ce:.9f}, KL {kl:.9f}")


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("digits.safetensors")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=HELD_OUT, stratify=labels, random_state=SEED)
    x_train, x_test = (torch.tensor(a, dtype=torch.float32).reshape(-1, 1, 8, 8) for a in split[:2])
    y_train, y_test = map(torch.tensor, split[2:])

    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 32))
    teacher, student = make_teacher(), Net(small, 32, nn.Linear(32, PROJECTION))
    train(teacher, x_train, y_train, contrast=True)
    train(student, x_train, y_train, contrast=False)
    queue = train_student_head(student, teacher, x_train)

    tensors, metadata = {}, dict(METADATA)
    with torch.no_grad():
        for name, net in (("student", student), ("teacher", teacher)):
            e = net.trunk(x_test)
            logits = net.classifier(e)
            tensors |= {f"{name}.embedding": e, f"{name}.projection": net.head(e), f"{name}.logits": logits}
            metadata[f"{name}.accuracy"] = f"{(logits.argmax(1) == y_test).double().mean():.4f}"
            print(f"{name}: {sum(p.numel() for p in net.parameters())} parameters")
    arrays = {k: v.contiguous().numpy() for k, v in (tensors | {"queue": queue}).items()}
    save(path, arrays | {"label": y_test.numpy().astype(np.uint8)}, metadata)

    with safe_open(path, "pt") as f:  # read back, so a mistake in `save` cannot pass
        d = {k: f.get_tensor(k) for k in f.keys()}
    assert all(np.array_equal(d[k].numpy(), a) and np.isfinite(a).all() for k, a in arrays.items())
    y = d.pop("label").long()
    report({k: v.double() for k, v in d.items()}, y)


if __name__ == "__main__":
    main()
