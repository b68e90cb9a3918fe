"""The graph between images that show the same thing (document 004, AGN).

Its nodes are places that mean the same in several images: landmarks of a
breast, or the cells of views whose cameras are known. Features of cells are
gathered at the nodes, passed on between images, and spread to cells again.

Shapes: B images, C channels, h and w of a feature map, N nodes of an image, k
nearest nodes of a cell.
"""

from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ['GATES', 'CrossViewGraph', 'finding_nodes', 'nearest_nodes']

# The attention's factor from its value between 0 and 1: the document's first
# one, which destroyed features, and the one that it ends with.
GATES = {'original': (1., 0.), 'residual': (2., .2)}


def nearest_nodes(places: Tensor, nodes: Tensor, k: int) -> Tensor:
    """Which nodes are among the k nearest of each place (A of eq. 20).

    Args:
        places: (M, 2) (px).
        nodes: (N, 2) (px).
        k: At most N.

    Returns:
        Tensor: (M, N), 1 or 0.
    """
    distance = torch.cdist(places, nodes)
    rows = distance.topk(min(k, len(nodes)), largest=False).indices
    return torch.zeros_like(distance).scatter_(1, rows, 1.)


def finding_nodes(sample: DetDataSample, k: int) -> Tensor:
    """Which of an image's nodes are among the k nearest of the centre of each
    true finding, (M, N)."""
    boxes = sample.gt_instances.bboxes
    nodes = boxes.new_tensor(np.asarray(sample.nodes))
    return nearest_nodes((boxes[:, :2] + boxes[:, 2:]) / 2, nodes, k)


@MODELS.register_module()
class CrossViewGraph(BaseModule):
    """Enriches each image's features by those of its partners (AGN).

    - Bipartite graph, to the other view: ``Z_B = ReLU(H X_a W_B)`` with ``H =
      H_g * H_s``. H_g is the ``relation``; ``H_s = sigmoid([X_i, X_j] w_s)``.
    - Inception graph, to the other breast: ``Z_I = ReLU(sum_s J_s [X_e; X_c]
      W_s)``. J_s is the mean over a node itself and, in the other breast, the
      s nodes nearest to its place; the document does not say whether a node
      sees itself.
    - Both go back to cells, as F_B and F_I; ``sigmoid(F_I w_I)`` gates the
      features, and ``Y = [gate * F_e, F_B] W_f``.

    Weights are shared by all levels of a pyramid. W_f begins as the identity
    on the features, zero on F_B, and w_I as zero: so a detector that was
    trained without the graph is not lost to random weights. An image without
    nodes, and one without any partner that has some, keeps its features; one
    with one partner has the graph to that one alone.

    Args:
        channels (int): C.
        relation (dict, optional): H_g, see
            :mod:`projects.ag_rcnn.relations`. None switches the bipartite
            graph off.
        inception (Sequence[int], optional): Sizes of the neighbourhoods;
            the document has three and does not give them. None switches the
            inception graph off.
        k (int): Nearest nodes of a cell.
        gate (str): ``residual``, ``2 a + 0.2``, or ``original``, ``a``.
        oracle (bool): Whether partners tell which nodes their true findings
            are at in place of their features, in tests, too: what could be
            gained if everything were found in the other image.
    """

    def __init__(self, channels: int, relation: Optional[dict] = None,
                 inception: Optional[Sequence[int]] = (1, 3, 5), k: int = 3,
                 gate: str = 'residual', oracle: bool = False,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg)
        if gate not in GATES:
            raise ValueError(f'CrossViewGraph: gate: expected one of '
                             f'{", ".join(GATES)}, found {gate}')
        if k < 1:
            raise ValueError(f'CrossViewGraph: k: expected 1 or more, found '
                             f'{k}')
        self.k, self.oracle, self.gate = k, oracle, GATES[gate]
        self.relation = self.fusion = None
        self.inception = tuple(inception or ())
        if relation is not None:
            self.relation = MODELS.build(relation)
            self.similarity = nn.Linear(2 * channels, 1, bias=False)
            self.message = nn.Linear(channels, channels, bias=False)
            self.fusion = nn.Conv2d(2 * channels, channels, 1, bias=False)
        if self.inception:
            self.branches = nn.ModuleList([
                nn.Linear(channels, channels, bias=False)
                for _ in self.inception])
            self.attention = nn.Linear(channels, 1, bias=False)

    def init_weights(self) -> None:
        """Begin as the detector without the graph, see the class."""
        super().init_weights()
        if self.fusion is not None:
            channels = self.fusion.out_channels
            with torch.no_grad():
                self.fusion.weight.zero_()
                self.fusion.weight[:, :channels, 0, 0] = torch.eye(channels)
            nn.init.zeros_(self.similarity.weight)
        if self.inception:
            nn.init.zeros_(self.attention.weight)

    def forward(self, features: Sequence[Tensor],
                samples: List[DetDataSample]) -> Tuple[Tensor, ...]:
        """Enrich the maps (B, C, h, w) of images that come together.

        Args:
            features: Of each level.
            samples: B, with ``img_id``, ``partners`` (ids by name),
                ``batch_input_shape`` and ``nodes`` ((N, 2) px or None).
        """
        rows = {sample.img_id: row for row, sample in enumerate(samples)}
        nodes = [None if sample.get('nodes') is None
                 else features[0].new_tensor(np.asarray(sample.nodes))
                 for sample in samples]
        partners: Dict[str, List[Optional[int]]] = {
            name: [self._partner(sample, name, rows, nodes)
                   for sample in samples]
            for name in ('other_view', 'other_breast')}
        if self.relation is None:
            partners['other_view'] = [None] * len(samples)
        if not self.inception:
            partners['other_breast'] = [None] * len(samples)
        wanted = {row for found in partners.values()
                  for pair in enumerate(found) if pair[1] is not None
                  for row in pair}
        if not wanted:
            return tuple(features)
        # H_g is of nodes alone: the same for all levels.
        related = {row: self.relation(samples[row], samples[other])
                   for row, other in enumerate(partners['other_view'])
                   if other is not None}
        told = {row: self._truth(samples[row], features[0].shape[1])
                for row in wanted} if self.oracle else {}
        return tuple(
            self._enrich(level, samples, nodes, partners, related, wanted,
                         told) for level in features)

    @staticmethod
    def _partner(sample, name, rows, nodes) -> Optional[int]:
        """Row of an image's partner, if both have nodes."""
        row = rows.get(sample.get('partners', {}).get(name))
        if row is None or nodes[row] is None or nodes[
                rows[sample.img_id]] is None:
            return None
        return row

    def _truth(self, sample: DetDataSample, channels: int) -> Tensor:
        """What an oracle says of an image's nodes, (N, C)."""
        told = finding_nodes(sample, self.k).sum(0).clamp(max=1)
        return told[:, None].expand(-1, channels)

    def _enrich(self, level: Tensor, samples, nodes, partners, related,
                wanted, told) -> Tensor:
        _, _, height, width = level.shape
        stride = samples[0].batch_input_shape[1] / width
        y, x = torch.meshgrid(
            *((torch.arange(n, device=level.device) + .5) * stride
              for n in (height, width)), indexing='ij')
        cells = torch.stack([x, y], -1).flatten(0, 1).to(level.dtype)
        near = {row: nearest_nodes(cells, nodes[row], self.k)
                for row in wanted}
        flat = level.flatten(2).transpose(1, 2)  # (B, cells, C)
        at_nodes = {
            row: (near[row].T @ flat[row]) / near[row].sum(0).clamp(
                min=1)[:, None] for row in wanted}
        sent = told or at_nodes
        images = []
        for row in range(len(level)):
            view, breast = (partners[name][row]
                            for name in ('other_view', 'other_breast'))
            if view is None and breast is None:
                images.append(level[row])
                continue
            spread = near[row] / near[row].sum(1, keepdim=True)
            gated = flat[row]
            if breast is not None:
                found = spread @ self._from_breast(
                    nodes[row], at_nodes[row], sent[breast])
                slope, offset = self.gate
                gated = gated * (slope * torch.sigmoid(self.attention(found))
                                 + offset)
            if self.fusion is not None:
                from_view = torch.zeros_like(gated)
                if view is not None:
                    from_view = spread @ self._from_view(
                        samples[row], samples[view], at_nodes[row],
                        at_nodes[view], sent[view], related[row])
                gated = F.linear(torch.cat([gated, from_view], 1),
                                 self.fusion.weight[:, :, 0, 0])
            images.append(gated.T.unflatten(1, (height, width)))
        return torch.stack(images)

    def _from_view(self, sample, other, mine, theirs, sent, related
                   ) -> Tensor:
        """What the nodes (N, C) of the other view tell those of this one."""
        first, second = self.similarity.weight[0].chunk(2)
        if not self.relation.in_order(sample, other):
            first, second = second, first
        alike = torch.sigmoid((mine @ first)[:, None] + theirs @ second)
        return F.relu((related * alike) @ self.message(sent))

    def _from_breast(self, nodes, mine, sent) -> Tensor:
        """What the nodes of both breasts tell those of this one."""
        total = 0.
        for size, branch in zip(self.inception, self.branches):
            size = min(size, len(nodes))
            both = mine + nearest_nodes(nodes, nodes, size) @ sent
            total = total + branch(both / (1 + size))
        return F.relu(total)
