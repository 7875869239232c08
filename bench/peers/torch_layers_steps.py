"""kiln's passes that are no layer, as PyTorch calls: optimizer steps, the norm of the gradient, augmentation."""

import torch
import torch.nn.functional as F

from torch_layers_pass import NoCounterpart, Pass

LR, ADAM_STEP = 0.125, 6  # kiln's step state in the same rows


def _clip_factor(p, norm):
    return torch.clamp(p["clip"] / (norm + 1e-6), max=1.0)


def _optimizer_parts(p):
    """(begin, end, weight decay) of the slab's parameter groups: the decayed part and the rest."""
    decay = p.get("wd", 0.0)
    cut = p.get("d", 0) if decay else 0
    return [part for part in ((0, cut, decay), (cut, p["n"], 0.0)) if part[0] < part[1]]


def optimizer_pass(op, p, make):
    n, low, momentum = p["n"], make.dtype != torch.float32, p.get("m", 0.0)

    def inputs():
        grad, param, first = (torch.randn(n, device=make.device) for _ in range(3))
        norm = torch.linalg.vector_norm(grad).reshape(1) if p.get("clip") else None
        second = make.positive(n) if op == "adamw" else None
        step = torch.full((), float(ADAM_STEP), device=make.device)
        return grad, norm, param, first, second, step, param.to(make.dtype) if low else None

    def prepare(tensors):
        grad, norm, param, first, second, step, copy = tensors
        groups, states = [], []
        for begin, end, decay in _optimizer_parts(p):
            view = param[begin:end]
            view.grad = grad[begin:end]
            groups.append({"params": [view], "weight_decay": decay})
            states.append({"momentum_buffer": first[begin:end]} if op == "sgd" else {
                "step": step if begin == 0 else step.clone(), "exp_avg": first[begin:end],
                "exp_avg_sq": second[begin:end]})
        if op == "sgd":
            optimizer = torch.optim.SGD(groups, lr=LR, momentum=momentum, nesterov=bool(p.get("nesterov")), fused=True)
        else:
            optimizer = torch.optim.AdamW(groups, lr=LR, betas=(p.get("ba", 0.9), p.get("bb", 0.999)),
                                          eps=p.get("eps", 1e-8), fused=True, capturable=make.device == "cuda")
        for group, state in zip(groups, states):
            optimizer.state[group["params"][0]] = state

        def call():
            if p.get("clip"):
                grad.mul_(_clip_factor(p, norm))
            optimizer.step()
            if low:
                copy.copy_(param)
            return []

        return call

    def join(of):
        """The slab, put together from of(slice, weight decay) of its parts."""
        parts = [of(slice(begin, end), decay) for begin, end, decay in _optimizer_parts(p)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def sgd(grad, norm, param, first, second, step, copy):
        grad = grad * _clip_factor(p, norm) if p.get("clip") else grad
        change = join(lambda at, decay: grad[at] + decay * param[at])
        if momentum:
            velocity = momentum * first + change
            first.copy_(velocity)
            change = change + momentum * velocity if p.get("nesterov") else velocity
        param.sub_(LR * change)
        if low:
            copy.copy_(param)

    def adamw(grad, norm, param, first, second, step, copy):
        grad = grad * _clip_factor(p, norm) if p.get("clip") else grad
        (b1, b2), t = (p.get("ba", 0.9), p.get("bb", 0.999)), step + 1
        m, v = b1 * first + (1 - b1) * grad, b2 * second + (1 - b2) * grad * grad
        kept = join(lambda at, decay: param[at] * (1 - LR * decay))
        new = kept - LR * (m / (1 - b1 ** t)) / ((v / (1 - b2 ** t)).sqrt() + p.get("eps", 1e-8))
        first.copy_(m), second.copy_(v), step.copy_(t), param.copy_(new)
        if low:
            copy.copy_(new)

    formula = sgd if op == "sgd" else adamw
    moved = 32 + 4 * n + 4 * bool(p.get("clip")) + 8 * n * (2 if op == "sgd" else 3) + n * make.size * low
    # Without momentum PyTorch's SGD keeps no velocity.
    outputs = (2,) + ((3, 4) if op == "adamw" else (3,) if momentum else ()) + ((6,) if low else ())
    return Pass(inputs, formula, (6 if op == "sgd" else 14) * n, moved, mutated=outputs, prepare=prepare)


def grad_norm_pass(p, make):
    if make.dtype != torch.float32:
        raise NoCounterpart("fp32 only")
    return Pass(lambda: (make.flat(p["n"]),), torch.linalg.vector_norm, 2 * p["n"], 4 * p["n"] + 4)


def augment_pass(p, make):
    """Draws, gathers, crops, flips, cuts, normalises and converts; the draws are outputs too, for the check."""
    if p.get("altflip"):
        raise NoCounterpart("flips are drawn anew")
    if p.get("reflect"):
        raise NoCounterpart("padding is zeros")
    n, h, w, c, pad, cut = p["n"], p["h"], p["w"], p["c"], p.get("pad", 0), p.get("cut", 0)
    padded, m, device = p.get("cs", c), p["m"], make.device

    def inputs():
        images = torch.randint(256, (m, h, w, c), device=device, dtype=torch.uint8)
        return (images, torch.randint(10, (m,), device=device, dtype=torch.int32), torch.randperm(m, device=device),
                0.4 + 0.1 * torch.rand(c, device=device), 0.2 + 0.1 * torch.rand(c, device=device))

    def run(images, labels, order, mean, std):
        index, draws = order[:n], []
        rows, columns = (torch.arange(size, device=device).expand(n, size) for size in (h, w))
        if p.get("flip"):
            flip = torch.rand(n, 1, device=device) < 0.5
            columns = torch.where(flip, w - 1 - columns, columns)
            draws.append(flip)
        if pad:
            offset = torch.randint(-pad, pad + 1, (2, n, 1), device=device)
            rows, columns = rows + offset[0], columns + offset[1]
            draws.append(offset)
        pixels = images[index[:, None, None], rows.clamp(0, h - 1)[:, :, None], columns.clamp(0, w - 1)[:, None, :]]
        y = (pixels - 255 * mean) * (1 / (255 * std))
        if pad:
            inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None, :]
            y = torch.where(inside[..., None], y, 0.0)
        if cut:
            first = torch.stack([torch.randint(size, (n,), device=device) for size in (h, w)]) - cut // 2
            from_first = [torch.arange(size, device=device) - begin[:, None] for size, begin in zip((h, w), first)]
            cut_rows, cut_columns = ((x >= 0) & (x < cut) for x in from_first)
            y = y.masked_fill((cut_rows[:, :, None] & cut_columns[:, None, :])[..., None], 0.0)
            draws.append(first)
        y = y.to(make.dtype)
        return [F.pad(y, (0, padded - c)) if padded > c else y, labels[index], *draws]

    moved = n * h * w * c + n * h * w * padded * make.size + 12 * n + 8 * c + 32
    return Pass(inputs, run, 3 * n * h * w * c, moved)
