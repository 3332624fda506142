"""Makes the weights of several people's sounds for pictures with known places, by torch.

    actor_masks.py OUT.json

Needs torch. The formulas are those of the reference's branch for several recordings: `interpolate` to the grid of tokens, a later person over an
earlier one, `max_pool2d` around each, and 1 where no other person is. Places are unions of boxes `x, y, width, height`.
"""
import json
import random
import sys

import torch
import torch.nn.functional as F

FRAMES = 12


def weights(masks, grid):
    """masks: one bool [H, W] a person -> [A, h, w]."""
    index = torch.full(grid, -1)
    for actor, mask in enumerate(masks):
        video = mask.float()[None, None, None].expand(1, 1, FRAMES, *mask.shape)
        small = F.interpolate(video, size=(FRAMES, *grid), mode="trilinear", align_corners=False)
        assert (small == small[:, :, :1]).all()
        index[small[0, 0, 0] > 0.5] = actor
    grown = []
    for actor in range(len(masks)):
        place = (index == actor).float()
        if place.any():
            ys, xs = torch.where(place > 0)
            larger = max(int(ys.max() - ys.min()) + 1, int(xs.max() - xs.min()) + 1)
            radius = max(1, int(0.1 * larger + 0.9999))
            place = F.max_pool2d(place[None, None], 2 * radius + 1, stride=1, padding=radius)[0, 0]
        grown.append(place > 0)
    grown = torch.stack(grown)
    return (grown.sum(0, keepdim=True) - grown.int()) == 0


def main():
    draw, cases = random.Random(5), []
    for case in range(32):
        grid = (draw.randint(2, 24), draw.randint(2, 44))
        # A third of the pictures are in whole pixels a token, the others in any size.
        scale = draw.choice([8, 16, 31]) if case % 3 == 0 else None
        height, width = (scale * grid[0], scale * grid[1]) if scale else (draw.randint(40, 900), draw.randint(40, 900))
        boxes, masks = [], []
        for _ in range(draw.choice([2, 2, 2, 3])):
            one, mask = [], torch.zeros(height, width, dtype=torch.bool)
            for _ in range(draw.choice([1, 1, 3])):
                x, y = draw.randrange(width), draw.randrange(height)
                w, h = draw.randint(1, width - x), draw.randint(1, height - y)
                mask[y:y + h, x:x + w] = True
                one.append([x, y, w, h])
            boxes.append(one)
            masks.append(mask)
        rows = ["".join("1" if v else "0" for v in actor.flatten().tolist()) for actor in weights(masks, grid)]
        cases.append(dict(picture=[height, width], grid=list(grid), boxes=boxes, weights=rows))
    with open(sys.argv[1], "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
