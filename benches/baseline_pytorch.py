#!/usr/bin/env python3
"""The losses as their authors' code computes them in PyTorch: what relata is measured against.

Two ways to run it:

  * without cases, a worker: reads requests from stdin, one JSON object a line, and answers each with
    one line. benches/compare drives it so, in turns with relata, on the same numbers.
  * with cases named as in the results (`rkd-angle-128x512`, `rrd-256x128-k16384`), alone: measures
    them on normal random numbers with the losses' default parameters and prints CSV.

A loss and its backward pass are timed; the gradient goes to the student only, the teacher is a
constant. The student's rows of CLIP and SigLIP are both towers, one after the other, and their scales
and biases have gradients too. All is float32 unless a request says otherwise, and the memory is what an evaluation adds to
that of a process that has its inputs. On a GPU an evaluation is timed by events.

Sources: RKD and DarkRank, github.com/lenscloth/RKD (metric/loss.py, metric/utils.py); RRD,
github.com/giakoumoglou/distillers (RRD.py), without its copies of the queue; InfoNCE as in MoCo,
github.com/facebookresearch/moco; KD, SP and PKT as in RepDistiller, github.com/HobbitLong/RepDistiller;
Gram as in DINOv3, github.com/facebookresearch/dinov3; the order of pairs as in RAG-Retrieval,
github.com/NovaSearch-Team/RAG-Retrieval (model_distill.py); CLIP, its distillation and SigLIP as in
github.com/mlfoundations/open_clip (loss.py); SupCon as in github.com/HobbitLong/SupContrast (losses.py).
"""

import argparse
import json
import math
import re
import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

# -- the losses ---------------------------------------------------------------------------------------


def huber(student, teacher, p):
    """The mean over all elements; for delta 1, smooth_l1_loss, which the authors call."""
    if p["delta"] == 1:
        return F.smooth_l1_loss(student, teacher)
    return F.huber_loss(student, teacher, delta=p["delta"])


def pairwise_distances(x, eps=1e-12):
    """From the Gram matrix, clamped so that the root has a derivative."""
    square = x.pow(2).sum(dim=1)
    d2 = square.unsqueeze(1) + square.unsqueeze(0) - 2 * (x @ x.t())
    d = d2.clamp(min=eps).sqrt().clone()
    d[range(len(x)), range(len(x))] = 0
    return d


def scaled_distances(x):
    d = pairwise_distances(x)
    return d / d[d > 0].mean()


def rkd_distance(x, y, queue, p):
    with torch.no_grad():
        t = scaled_distances(y)
    return huber(scaled_distances(x), t, p)


def cosines(x):
    """[N, N, N] by way of the [N, N, D] differences."""
    e = F.normalize(x.unsqueeze(0) - x.unsqueeze(1), p=2, dim=2)
    return torch.bmm(e, e.transpose(1, 2)).view(-1)


def rkd_angle(x, y, queue, p):
    with torch.no_grad():
        t = cosines(y)
    return huber(cosines(x), t, p)


def rkd(x, y, queue, p):
    distance = rkd_distance(x, y, queue, p)
    return p["distance_weight"] * distance + p["angle_weight"] * rkd_angle(x, y, queue, p)


def similarities(x):
    return F.normalize(x @ x.t())


def sp(x, y, queue, p):
    with torch.no_grad():
        t = similarities(y)
    difference = t - similarities(x)
    return (difference * difference).sum() / (len(x) * len(x))


def cosines_of_pairs(x, epsilon=0.0):
    return (z := x / (x.norm(dim=-1, keepdim=True) + epsilon)) @ z.transpose(-1, -2)


def gram(x, y, queue, p):
    """Of rows [N, D], or of groups of them [B, N, D]."""
    with torch.no_grad():
        t = cosines_of_pairs(y)
    s = cosines_of_pairs(x)
    if p["clamp"]:
        s, t = s.clamp(min=0), t.clamp(min=0)
    return F.mse_loss(s, t)


def pkt(x, y, queue, p):
    epsilon = 1e-7

    def probabilities(x):
        s = (cosines_of_pairs(x, epsilon) + 1) / 2
        return s / s.sum(dim=1, keepdim=True)

    with torch.no_grad():
        t = probabilities(y)
    return torch.mean(t * torch.log((t + epsilon) / (probabilities(x) + epsilon)))


def later_less_earlier(x):
    """Of the cosines of all pairs of rows, as a vector, each one less each one before it."""

    def upper(matrix):
        return matrix[torch.triu(torch.ones_like(matrix), diagonal=1).bool()]

    z = F.normalize(x, p=2, dim=-1)
    cosines = upper(torch.matmul(z, z.T))
    return upper(cosines.reshape(1, -1) - cosines.reshape(-1, 1))


def order(x, y, queue, p):
    with torch.no_grad():
        label = torch.where(later_less_earlier(y) < 0, 1, -1)
    return F.relu(later_less_earlier(x) * label + p["margin"]).mean()


def dark_rank(x, y, queue, p):
    def scores(x):
        return -p["alpha"] * pairwise_distances(x).pow(p["beta"])

    with torch.no_grad():
        nearest = scores(y).sort(dim=1, descending=True)[1][:, 1 : p["length"] + 1]
    ranked = torch.gather(scores(x), 1, nearest)
    left = [torch.logsumexp(ranked[:, k:], dim=1) for k in range(nearest.size(1))]
    return -(ranked - torch.stack(left, dim=1)).sum(dim=1).mean()


def rrd(x, y, queue, p):
    student = torch.einsum("nc,kc->nk", x, queue) / p["student_temperature"]
    with torch.no_grad():
        teacher = torch.einsum("nc,kc->nk", y, queue) / p["teacher_temperature"]
        target = F.softmax(teacher, dim=1)
    return -torch.sum(target * F.log_softmax(student, dim=1), dim=1).mean()


def info_nce(x, y, queue, p):
    if queue is None:
        logits = x @ y.t()
        target = torch.arange(len(x), device=x.device)
    else:
        own = torch.einsum("nc,nc->n", x, y).unsqueeze(1)
        logits = torch.cat([own, torch.einsum("nc,kc->nk", x, queue)], dim=1)
        target = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return F.cross_entropy(logits / p["temperature"], target)


def jensen_shannon(log_q, log_p, beta):
    """TRL's generalized_jsd_loss between its ends."""
    mixed = torch.logsumexp(torch.stack([log_q + math.log1p(-beta), log_p + math.log(beta)]), dim=0)
    teacher = F.kl_div(mixed, log_p, reduction="none", log_target=True)
    student = F.kl_div(mixed, log_q, reduction="none", log_target=True)
    return (beta * teacher + (1 - beta) * student).sum() / len(log_q)


def kd_kl(x, y, queue, p):
    t, divergence = p["student_temperature"], p["divergence"]
    log_q = F.log_softmax(x / t, dim=1)
    with torch.no_grad():
        log_p = F.log_softmax(y / p["teacher_temperature"], dim=1)
        target = log_p.exp()
    if divergence == "forward":
        value = F.kl_div(log_q, target, reduction="batchmean")
    elif divergence == "reverse":
        value = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    elif divergence == "js":
        value = jensen_shannon(log_q, log_p, p["beta"])
    elif divergence == "skew":
        mixed = p["alpha"] * target + (1 - p["alpha"]) * log_q.exp()
        value = F.kl_div(mixed.log(), target, reduction="batchmean")
    else:
        mixed = p["alpha"] * log_q.exp() + (1 - p["alpha"]) * target
        value = (log_q.exp() * (log_q - mixed.log())).sum() / len(x)
    return value * t * t


def learned(number, x):
    """As a parameter of the model has it."""
    return torch.tensor(number, dtype=x.dtype, device=x.device, requires_grad=True)


def soft_cross_entropy(teacher, student):
    return -(teacher.softmax(dim=1) * student.log_softmax(dim=1)).sum(dim=1).mean(dim=0)


def masked_clip(x, y, queue, p):
    """Both towers' rows have a softmax, or the first one's alone; the teacher may mask pairs."""
    images, texts = F.normalize(x, dim=1).chunk(2)
    logits = learned(1 / p["temperature"], x) * images @ texts.T
    target = torch.arange(len(images), device=x.device)
    images, texts = F.normalize(y, dim=1).chunk(2)
    cosines = images @ texts.T
    loss, ways = 0, 2 if p["both_ways"] else 1
    for logits, cosines in [(logits, cosines), (logits.T, cosines.T)][:ways]:
        masked = torch.zeros_like(cosines, dtype=torch.bool)
        if p["guided"]:
            masked = cosines > cosines.diagonal()[:, None] - p["guide_margin"]
            masked.fill_diagonal_(False)
        logits = logits.masked_fill(masked, -torch.inf)
        hard = F.cross_entropy(logits, target)
        q = (cosines / p["teacher_temperature"]).masked_fill(masked, -torch.inf).softmax(dim=1)
        soft = -(q * logits.log_softmax(dim=1).masked_fill(masked, 0)).sum(dim=1).mean()
        loss = loss + (p["hard_weight"] * hard + p["soft_weight"] * soft) / ways
    return loss


def clip(x, y, queue, p):
    if y is not None and (p["guided"] or not p["both_ways"]):
        return masked_clip(x, y, queue, p)
    images, texts = F.normalize(x, dim=1).chunk(2)
    logits = learned(1 / p["temperature"], x) * images @ texts.T
    target = torch.arange(len(images), device=x.device)
    loss = p["hard_weight"] * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    if y is None:
        return loss
    with torch.no_grad():
        images, texts = F.normalize(y, dim=1).chunk(2)
        teacher = images @ texts.T / p["teacher_temperature"]
    soft = soft_cross_entropy(teacher, logits) + soft_cross_entropy(teacher.T, logits.T)
    return loss + p["soft_weight"] * soft / 2


def siglip(x, y, queue, p):
    images, texts = F.normalize(x, dim=1).chunk(2)
    logits = learned(p["scale"], x) * images @ texts.T + learned(p["bias"], x)
    labels = 2 * torch.eye(len(images), dtype=x.dtype, device=x.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(images)


def sup_con(x, labels, queue, p):
    """The labels come in the teacher's place. Rows without others of their label do not count."""
    x = F.normalize(x, dim=1)
    others = 1 - torch.eye(len(x), dtype=x.dtype, device=x.device)
    mask = (labels == labels.T).to(x.dtype) * others
    logits = learned(1 / p["temperature"], x) * x @ x.T
    logits = logits - logits.max(dim=1, keepdim=True)[0].detach()
    log_prob = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
    positives = mask.sum(1)
    means = (mask * log_prob).sum(1) / positives.clamp(min=1)
    return -means.sum() / (positives > 0).sum().clamp(min=1)


LOSSES = {
    "rkd-distance": rkd_distance,
    "rkd-angle": rkd_angle,
    "rkd": rkd,
    "sp": sp,
    "gram": gram,
    "pkt": pkt,
    "order": order,
    "dark-rank": dark_rank,
    "rrd": rrd,
    "info-nce": info_nce,
    "kd-kl": kd_kl,
    "clip": clip,
    "siglip": siglip,
    "sup-con": sup_con,
}

DEFAULTS = {
    "rkd-distance": {"delta": 1.0, "normalize": False},
    "rkd-angle": {"delta": 1.0, "normalize": False},
    "rkd": {"distance_weight": 1.0, "angle_weight": 2.0, "delta": 1.0, "normalize": False},
    "sp": {},
    "gram": {"clamp": False},
    "pkt": {},
    "order": {"margin": 0.015},
    "dark-rank": {"alpha": 3, "beta": 3, "length": 4},
    "rrd": {"student_temperature": 0.1, "teacher_temperature": 0.02, "normalize": True},
    "info-nce": {"temperature": 0.07, "normalize": True},
    "kd-kl": {
        "student_temperature": 4.0,
        "teacher_temperature": 4.0,
        "divergence": "forward",
        "beta": 0.5,
        "alpha": 0.1,
    },
    "clip": {
        "temperature": 0.07,
        "teacher_temperature": 0.07,
        "hard_weight": 1.0,
        "soft_weight": 1.0,
        "both_ways": True,
        "guided": False,
        "guide_margin": 0.0,
    },
    "siglip": {"scale": 10.0, "bias": -10.0},
    "sup-con": {"temperature": 0.07},
}


def whole(loss, p, groups=1):
    """The loss with the normalisation of rows that its parameters ask for, and its mean over groups of rows."""
    function = LOSSES[loss]

    def evaluate(x, y, queue):
        if p.get("normalize"):
            with torch.no_grad():
                y = F.normalize(y, dim=1)
            x = F.normalize(x, dim=1)
        if groups == 1:
            return function(x, y, queue, p)
        x, y = (rows.view(groups, -1, rows.size(1)) for rows in (x, y))
        if loss == "gram":
            return function(x, y, queue, p)
        return torch.stack([function(*group, queue, p) for group in zip(x, y)]).mean()

    return evaluate


def rrd_by_attention(x, y, queue, p):
    """The gradient of RRD without its loss, in two calls of scaled_dot_product_attention with the queue for keys and
    values: what somebody would write who wants speed and has PyTorch. (O_s - O_t)/(tau_s N), O the mean keys."""
    with torch.no_grad():
        length = x.norm(dim=1, keepdim=True) if p["normalize"] else 1
        z, keys = x / length, queue[None, None]
        target = F.normalize(y, dim=1) if p["normalize"] else y
        mean, target_mean = (
            F.scaled_dot_product_attention(rows[None, None], keys, keys, scale=1 / p[temperature])[0, 0]
            for rows, temperature in ((z, "student_temperature"), (target, "teacher_temperature"))
        )
        gradient = (mean - target_mean) / (p["student_temperature"] * len(x))
        if p["normalize"]:
            gradient = (gradient - z * (z * gradient).sum(dim=1, keepdim=True)) / length
        return gradient


DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


# -- measuring ----------------------------------------------------------------------------------------


class Case:
    """A loss with its inputs on the device: so many copies, taken in turns, that no cache holds them."""

    def __init__(self, loss, parameters, student, teacher, queue, args, dtype=torch.float32, copies=1, groups=1):
        self.device = torch.device(args.device)

        def place(tensor):
            if tensor is None:
                return None
            return tensor.to(self.device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True)

        self.batches = [(place(student).requires_grad_(), place(teacher), place(queue)) for _ in range(copies)]
        self.turns = 0
        self.provider = args.provider
        self.parameters = parameters
        self.loss = whole(loss, parameters, groups)
        if self.provider == "compiled":
            torch.compiler.reset()  # of many shapes in one process, the later ones would run eagerly
            self.loss = torch.compile(self.loss, dynamic=False)
        if self.provider == "attention":
            if loss != "rrd":
                sys.exit(f"--provider attention: expected rrd, got {loss}")
            self.hold_against_autograd()

    def hold_against_autograd(self):
        """Before it is timed: attention is to give the gradient of the formula."""
        got = self.evaluate().double()
        self.provider = "eager"
        self.turns = 0
        self.evaluate()
        want = self.student.grad.double()
        self.provider = "attention"
        off = ((got - want).norm() / want.norm()).item()
        # In half types autograd's own logits are rounded, some 2e-3 of up to 1/tau.
        most = 1e-3 if self.student.dtype == torch.float32 else 1e-1
        if not off <= most:
            sys.exit(f"attention: expected the gradient to {most}, got one that is off by {off:.1e}")

    def evaluate(self):
        self.student, teacher, queue = self.batches[self.turns % len(self.batches)]
        self.turns += 1
        self.student.grad = None
        if self.provider == "attention":
            self.student.grad = rrd_by_attention(self.student, teacher, queue, self.parameters)
            return self.student.grad
        loss = self.loss(self.student, teacher, queue)
        loss.backward()
        return loss

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self):
        """One evaluation."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.evaluate()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000
        self.synchronize()
        start = time.perf_counter()
        self.evaluate()
        self.synchronize()
        return time.perf_counter() - start

    def turn(self, budget):
        """Evaluations until `budget` seconds are over, and one at least. The first is a warm-up unless
        it is the only one."""
        samples = [self.seconds()]
        while sum(samples) < budget:
            samples.append(self.seconds())
        return samples[1:] or samples

    def peak_bytes(self):
        """What one evaluation adds at most to the memory in use."""
        if self.provider == "compiled":
            self.evaluate()  # the compiler's memory is not meant
        for student, _, _ in self.batches:
            student.grad = None
        if self.device.type == "cuda":
            self.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.evaluate()
            self.synchronize()
            return torch.cuda.max_memory_allocated() - before
        before = resident_peak(reset=True)
        self.evaluate()
        return resident_peak() - before


def units(shape, budget):
    """What losses are made of: seconds of products of this shape, and of the exponentials of as many numbers as they
    have results. Nothing is allocated, and what is read stays in the caches if it fits."""
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    product, numbers = torch.empty(rows, columns), -torch.rand(rows, columns)
    with torch.no_grad():
        return {
            "products": repeat(lambda: torch.mm(a, b, out=product), budget / 2),
            "exponentials": repeat(lambda: torch.exp(numbers, out=product), budget / 2),
        }


def repeat(what, budget):
    """Seconds of each run until the budget is over; the first is a warm-up."""
    samples = []
    while len(samples) < 2 or sum(samples) < budget:
        start = time.perf_counter()
        what()
        samples.append(time.perf_counter() - start)
    return samples[1:]


def resident_peak(reset=False):
    """The most memory the process has had, in bytes; from now on, where the system can start anew."""
    if reset:
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
        except OSError:
            pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def warm_up(args):
    """Starts the threads and loads the libraries, with a case too small to leave memory behind."""
    x = torch.randn(8, 8)
    for loss in LOSSES:
        queue = x if loss in ("rrd", "info-nce") else None
        teacher = None if loss == "siglip" else labels_of(8, 4) if loss == "sup-con" else x.flip(0)
        Case(loss, DEFAULTS[loss], x.clone(), teacher, queue, args).evaluate()


def labels_of(rows, labels):
    return (torch.arange(rows) % labels).unsqueeze(1)


# -- the worker ---------------------------------------------------------------------------------------


def load(array):
    """A file of little-endian float32 and its shape."""
    if array is None:
        return None
    rows, dim = array["shape"]
    return torch.from_file(array["path"], size=rows * dim, dtype=torch.float32).clone().view(rows, dim)


def save(tensor, path):
    flat = tensor.detach().cpu().float().contiguous().view(-1)
    torch.from_file(path, shared=True, size=flat.numel(), dtype=torch.float32).copy_(flat)


def open_case(request, args):
    arrays = [load(request[name]) for name in ("student", "teacher", "queue")]
    if request.get("labels"):
        arrays[1] = torch.tensor(request["labels"]).unsqueeze(1)
    dtype = DTYPES[request.get("dtype", "f32")]
    copies, groups = request.get("copies", 1), request.get("groups", 1)
    return Case(request["loss"], request["parameters"], *arrays, args, dtype, copies, groups)


def answer(request, case):
    """`case` is the one opened last."""
    if request["do"] == "check":
        loss = case.evaluate()
        save(case.student.grad, request["gradient"])
        return {"loss": loss.item(), "gradient_norm": case.student.grad.double().norm().item()}
    if request["do"] == "time":
        return {"seconds": case.turn(request["budget"])}
    if request["do"] == "peak":
        return {"bytes": case.peak_bytes()}
    if request["do"] == "units":
        return units(request["shape"], request["budget"])
    raise ValueError(f"do: expected open, check, time, peak, units or close, got {request['do']!r}")


def work(args):
    """Requests: {"do": "open", "loss", "parameters", "groups", "student", "teacher", "queue"}, then of
    that case {"do": "check", "gradient"}, {"do": "time", "budget"}, {"do": "peak"}, {"do": "close"}; and without a case,
    on a CPU, {"do": "units", "shape", "budget"}. Arrays are {"path", "shape"} or null."""
    warm_up(argparse.Namespace(device=args.device, provider="eager"))
    print(json.dumps({"torch": version(args), "device": device_name(args)}), flush=True)
    case = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] in ("open", "close"):
            case = None
            if args.device == "cuda":
                torch.cuda.empty_cache()  # others on the GPU want it
            case = open_case(request, args) if request["do"] == "open" else None
            reply = {}
        else:
            reply = answer(request, case)
        print(json.dumps(reply), flush=True)


def version(args):
    return torch.__version__ + ("" if args.provider == "eager" else f" {args.provider}")


def device_name(args):
    return torch.cuda.get_device_name() if args.device == "cuda" else "cpu"


# -- alone --------------------------------------------------------------------------------------------

NAME = re.compile(
    r"(?P<loss>[a-z-]+)-(?P<rows>\d+)x(?P<dim>\d+)(-groups-(?P<groups>\d+))?(-k(?P<queue>\d+))?(?P<own>-own)?"
    r"(-labels-(?P<labels>\d+))?(?P<alone>-alone)?"
)


def parse_case(name):
    match = NAME.fullmatch(name)
    if not match or match["loss"] not in LOSSES or not_whole(match):
        names = ", ".join(LOSSES)
        form = "LOSS-NxD[-groups-B][-kK[-own]][-labels-L][-alone]"
        sys.exit(f"case: expected {form} with LOSS one of {names}, got {name!r}")
    return match


def not_whole(match):
    """RRD needs a queue, and SupCon labels."""
    return match["loss"] == "rrd" and not match["queue"] or match["loss"] == "sup-con" and not match["labels"]


def random_case(match, args):
    torch.manual_seed(0)
    rows, dim = int(match["rows"]), int(match["dim"])
    student, teacher, queue = torch.randn(rows, dim), torch.randn(rows, dim), None
    if match["alone"] or match["loss"] == "siglip":
        teacher = None
    if match["labels"]:
        teacher = labels_of(rows, int(match["labels"]))
    if match["queue"]:
        queue = F.normalize(torch.randn(int(match["queue"]), dim), dim=1)
        if match["own"]:
            queue[: len(teacher)] = F.normalize(teacher, dim=1)[-len(queue) :]
    groups = int(match["groups"] or 1)
    return Case(match["loss"], DEFAULTS[match["loss"]], student, teacher, queue, args, groups=groups)


def alone(args):
    """Each case in a process of its own: memory is not given back between them."""
    cases = [parse_case(name) for name in args.cases]
    if not args.part:
        print("device,threads,torch,case,p20_s,p50_s,p80_s,peak_bytes", flush=True)
    if len(cases) == 1:
        measure(cases[0], args)
        return
    options = [arg for arg in sys.argv[1:] if arg not in args.cases]
    for case in cases:
        subprocess.run([sys.executable, __file__, *options, "--part", case[0]], check=True)


def measure(match, args):
    warm_up(argparse.Namespace(device=args.device, provider="eager"))
    case = random_case(match, args)
    peak = case.peak_bytes()
    samples = sorted(case.turn(args.seconds))
    times = (f"{samples[round(q * (len(samples) - 1))]:.4e}" for q in (0.2, 0.5, 0.8))
    device = f'"{device_name(args)}"'
    print(device, args.threads, version(args), match[0], *times, peak, sep=",", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="measure these alone, and print CSV")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--provider", choices=["eager", "compiled", "attention"], default="eager",
                        help="the formulas as they come, through torch.compile, or RRD's gradient by scaled_dot_product_attention")
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=3.0, help="alone: time for a case")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # float32 is to mean float32; TensorFloat-32 is not used unless it is asked for.
    torch.backends.cuda.matmul.allow_tf32 = False
    if args.cases:
        alone(args)
    else:
        work(args)


if __name__ == "__main__":
    main()
