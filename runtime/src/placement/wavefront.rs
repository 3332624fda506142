//! The order of work, as pure state. Item (block, step) is in wave `block + step`. It needs the
//! previous step of its block, and the ring of its step with the previous block in it. The items of
//! a call depend on numbers alone, and only its start depends on time. There is no tensor, no
//! thread and no clock here.

use std::collections::VecDeque;
use std::iter;
use std::ops::Range;

use crate::placement::plan::{Latency, Plan};

/// One denoising step of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Item {
    /// Global block number.
    pub block: usize,
    /// Denoising step. In a [`Grid`] of several passes: the step times the passes, plus the pass.
    pub step: usize,
}

/// Items of one wave that run as the lanes of one call: contiguous steps of one chain, one anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Number of the chain.
    pub chain: usize,
    /// Number of the anchor: the picture's for each pass, then those after the swap.
    pub anchor: usize,
    /// Items in ascending order of steps, so in descending order of blocks.
    pub items: Vec<Item>,
}

/// The work of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    /// First block to make. The state before it was kept by an earlier run.
    pub first: usize,
    /// Blocks of the video, with those before the first.
    pub blocks: usize,
    /// Calls of a block: its denoising steps, times the passes of a step.
    pub steps: usize,
    /// Passes of a step, each with an anchor of its own. Guidance takes two.
    pub passes: usize,
    /// First block that needs the second anchor.
    pub swap_at: Option<usize>,
}

impl Grid {
    /// Returns the anchor of an item.
    pub(crate) fn anchor(&self, item: &Item) -> usize {
        let swapped = usize::from(self.swap_at.is_some_and(|at| item.block >= at));
        swapped * self.passes + item.step % self.passes
    }

    /// Counts the anchors that only blocks before the first one need.
    pub(crate) fn skipped_anchors(&self) -> usize {
        let swapped = self.first > 0 && self.swap_at.is_some_and(|at| self.first >= at);
        usize::from(swapped) * self.passes
    }

    fn waves(&self) -> usize {
        if self.blocks <= self.first {
            0
        } else {
            self.blocks + self.steps - 1
        }
    }
}

struct ChainState {
    steps: Range<usize>,
    lanes: usize,
    /// Each has one call under way, and one more call waits.
    stages: usize,
    /// A stage of it is on the decoder's device, and the first block does not wait for others.
    shares: bool,
    in_flight: usize,
}

/// Blocks that may be open beside one for each step. With so many, no chain waits until another
/// block is decoded.
const SPARE_BLOCKS: usize = 2;

/// The state of the grid.
pub(crate) struct Wavefront {
    grid: Grid,
    chains: Vec<ChainState>,
    latency: Latency,
    pending: VecDeque<Group>,
    next_wave: usize,
    /// Blocks issued and finished, per step; both only grow.
    issued: Vec<usize>,
    done: Vec<usize>,
    prepared: usize,
    delivered: usize,
    /// The first block is decoded.
    shown: bool,
    anchors: usize,
}

impl Wavefront {
    /// Makes the state before the first call.
    pub(crate) fn new(grid: Grid, plan: &Plan) -> Self {
        let chains = plan
            .chains
            .iter()
            .map(|c| ChainState {
                steps: c.steps.clone(),
                lanes: c.lanes,
                stages: c.stages.len(),
                shares: (c.stages.len() == 1 || plan.latency == Latency::Low)
                    && c.stages.iter().any(|s| s.device == plan.vae),
                in_flight: 0,
            })
            .collect();
        let (steps, first, anchors) = (grid.steps, grid.first, grid.skipped_anchors());
        Self {
            grid,
            chains,
            latency: plan.latency,
            pending: VecDeque::new(),
            next_wave: first,
            issued: vec![first; steps],
            done: vec![first; steps],
            prepared: first,
            delivered: first,
            shown: false,
            anchors,
        }
    }

    /// Returns the next call among those that may start now, if any. The caller must start it.
    ///
    /// A chain of one stage takes the oldest block first: its blocks come one by one, the first
    /// after as many calls as there are steps. Stages in a row take the oldest wave first, which
    /// keeps all of them busy. With [`Latency::Low`], they do so after the first block, and take
    /// the oldest block first until then.
    pub(crate) fn issue(&mut self) -> Option<Group> {
        self.look_ahead();
        let mut ready = (0..self.pending.len()).filter(|&i| self.may_start(&self.pending[i]));
        let first = ready.next()?;
        let chain = self.pending[first].chain;
        let at = match (self.chains[chain].stages, self.hurries()) {
            (1, _) | (_, true) => iter::once(first)
                .chain(ready.filter(|&i| self.pending[i].chain == chain))
                .min_by_key(|&i| self.pending[i].items.last().map(|item| item.block))?,
            _ => first,
        };
        let group = self.pending.remove(at)?;
        self.chains[group.chain].in_flight += 1;
        for item in &group.items {
            self.issued[item.step] += 1;
        }
        Some(group)
    }

    /// Counts the blocks, from the first on, whose noise and audio should be ready by now.
    pub(crate) fn wanted(&self) -> usize {
        (self.issued[0] + SPARE_BLOCKS).min(self.grid.blocks)
    }

    /// Records that one more block has its noise and audio.
    pub(crate) fn prepared(&mut self) {
        self.prepared += 1;
    }

    /// Records that the video ends before `block`, none of whose items has begun.
    pub(crate) fn end_before(&mut self, block: usize) {
        self.grid.blocks = self.grid.blocks.min(block);
        let blocks = self.grid.blocks;
        for group in &mut self.pending {
            group.items.retain(|item| item.block < blocks);
        }
        self.pending.retain(|group| !group.items.is_empty());
    }

    /// Records that one more anchor is computed.
    pub(crate) fn anchored(&mut self) {
        self.anchors += 1;
    }

    /// Records that a call is finished.
    pub(crate) fn finished(&mut self, group: &Group) {
        self.chains[group.chain].in_flight -= 1;
        for item in &group.items {
            debug_assert_eq!(self.done[item.step], item.block, "a chain keeps its order");
            self.done[item.step] += 1;
        }
    }

    /// Records that one more finished block left the denoiser.
    pub(crate) fn delivered(&mut self) {
        self.delivered += 1;
    }

    /// Records that the first block is decoded.
    pub(crate) fn shown(&mut self) {
        self.shown = true;
    }

    /// Returns whether every item is finished.
    pub(crate) fn is_complete(&self) -> bool {
        self.done.iter().all(|&n| n >= self.grid.blocks)
    }

    /// Splits the next waves into groups. As many waves as steps are enough, because an item waits
    /// for its neighbour of the wave before.
    fn look_ahead(&mut self) {
        let oldest = self
            .pending
            .front()
            .and_then(|g| g.items.first())
            .map(|i| i.block + i.step);
        let until = oldest
            .map_or(self.next_wave + 1, |w| w + self.grid.steps)
            .min(self.grid.waves());
        while self.next_wave < until {
            let wave = self.next_wave;
            for (chain, state) in self.chains.iter().enumerate() {
                self.pending.extend(groups(&self.grid, wave, chain, state));
            }
            self.next_wave += 1;
        }
    }

    /// Returns how many calls a chain may hold. One of them waits in front of the first stage. But
    /// until the first block is made, which a user awaits, it would hold that block up.
    fn most_in_flight(&self, chain: &ChainState) -> usize {
        match chain.stages {
            1 if self.is_first_awaited() => 1,
            // Stages are not equally long. One call less leaves the first stage free in time.
            stages if self.hurries() => stages - 1,
            stages => stages + 1,
        }
    }

    fn is_first_awaited(&self) -> bool {
        self.done.last() == Some(&self.grid.first)
    }

    /// Returns whether stages in a row do without some work for the first block.
    fn hurries(&self) -> bool {
        self.latency == Latency::Low && self.is_first_awaited()
    }

    fn may_start(&self, group: &Group) -> bool {
        let chain = &self.chains[group.chain];
        let fed = |&Item { block, step }: &Item| match step {
            0 => block < self.prepared && block < self.delivered + self.grid.steps + SPARE_BLOCKS,
            _ => self.done[step - 1] > block,
        };
        let in_turn = |i: &Item| self.issued[i.step] == i.block;
        // A user awaits the first block, so its decoding has the device alone.
        let yields = chain.shares && self.delivered > self.grid.first && !self.shown;
        chain.in_flight < self.most_in_flight(chain)
            && !yields
            && group.anchor < self.anchors
            && group.items.iter().all(|i| in_turn(i) && fed(i))
    }
}

fn groups(grid: &Grid, wave: usize, index: usize, chain: &ChainState) -> Vec<Group> {
    let mut out: Vec<Group> = Vec::new();
    for step in chain
        .steps
        .clone()
        .filter(|&s| s <= wave && (grid.first..grid.blocks).contains(&(wave - s)))
    {
        let item = Item {
            block: wave - step,
            step,
        };
        let anchor = grid.anchor(&item);
        match out.last_mut() {
            Some(g) if g.anchor == anchor && g.items.len() < chain.lanes => g.items.push(item),
            _ => out.push(Group {
                chain: index,
                anchor,
                items: vec![item],
            }),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::plan::{Lanes, Stages};
    use proptest::prelude::*;

    fn front(
        blocks: usize,
        steps: usize,
        swap_at: Option<usize>,
        stages: &Stages,
        lanes: usize,
    ) -> Wavefront {
        let plan = Plan::new(stages, Lanes::AtMost(lanes.min(steps)), 4, steps).unwrap();
        Wavefront::new(
            Grid {
                first: 0,
                blocks,
                steps,
                passes: 1,
                swap_at,
            },
            &plan,
        )
    }

    #[test]
    fn one_stage_runs_whole_waves_and_splits_them_at_the_anchor() {
        let mut f = front(6, 4, Some(4), &Stages::default(), 4);
        f.anchored();
        f.anchored();
        (0..6).for_each(|_| f.prepared());
        let mut calls = Vec::new();
        while let Some(g) = f.issue() {
            calls.push(
                g.items
                    .iter()
                    .map(|i| (i.block, i.step))
                    .collect::<Vec<_>>(),
            );
            f.finished(&g);
            if g.items.iter().any(|i| i.step == 3) {
                f.delivered();
                f.shown();
            }
        }
        assert!(f.is_complete());
        assert_eq!(calls[3], [(3, 0), (2, 1), (1, 2), (0, 3)]);
        let old = [
            vec![(3, 1), (2, 2), (1, 3)],
            vec![(3, 2), (2, 3)],
            vec![(3, 3)],
        ];
        assert_eq!(calls[4..7], old, "the blocks of the first anchor go first");
        assert_eq!(calls.last(), Some(&vec![(5, 3)]));
    }

    #[test]
    fn one_lane_on_one_stage_finishes_a_block_with_its_fourth_call() {
        let mut f = front(9, 4, Some(4), &Stages::default(), 1);
        f.anchored();
        f.anchored();
        (0..9).for_each(|_| f.prepared());
        let mut calls = Vec::new();
        let mut waiting = VecDeque::new();
        loop {
            waiting.extend(iter::from_fn(|| f.issue()));
            // Two calls in a row would make the first block wait for the second one.
            assert!(waiting.len() <= 1 + usize::from(calls.len() >= 4));
            let Some(g) = waiting.pop_front() else { break };
            f.finished(&g);
            calls.push(g.items[0]);
            if g.items[0].step == 3 {
                f.delivered();
                let first = calls.len() == 4;
                assert!(
                    !first || f.issue().is_none(),
                    "the first block is decoded alone"
                );
                f.shown();
            }
        }
        assert!(f.is_complete());
        let ends = calls.iter().enumerate().filter(|(_, i)| i.step == 3);
        let ends: Vec<(usize, usize)> = ends.map(|(call, i)| (i.block, call + 1)).collect();
        assert_eq!(ends[0], (0, 4));
        // One call of the next block is always under way already.
        let late = |&(block, call): &(usize, usize)| call <= 4 * (block + 1) + 4;
        assert!(ends.iter().all(late), "{ends:?}");
    }

    #[test]
    fn stages_in_a_row_leave_room_for_the_first_block_where_latency_is_low() {
        let stages = Stages::Grid {
            layers: 4,
            steps: 1,
        };
        let calls_before = |latency| {
            let plan = Plan::new(&stages, Lanes::AtMost(1), 4, 4)
                .unwrap()
                .with_latency(latency);
            let grid = Grid {
                first: 0,
                blocks: 9,
                steps: 4,
                passes: 1,
                swap_at: None,
            };
            let mut f = Wavefront::new(grid, &plan);
            f.anchored();
            (0..9).for_each(|_| f.prepared());
            let (mut flying, mut calls) = (VecDeque::new(), Vec::new());
            while f.done[3] == 0 {
                flying.extend(iter::from_fn(|| f.issue()));
                let g: Group = flying.pop_front().unwrap();
                f.finished(&g);
                calls.push(g.items[0]);
            }
            let of_others = calls.iter().filter(|i| i.block > 0).count();
            (of_others, flying.len())
        };
        // Between two items of the first block pass the calls that were under way: two or four.
        assert_eq!(calls_before(Latency::Low), (6, 2));
        assert_eq!(calls_before(Latency::Normal), (12, 4));
    }

    #[test]
    fn old_blocks_go_on_while_the_second_anchor_is_awaited() {
        let mut f = front(8, 4, Some(4), &Stages::default(), 4);
        f.anchored();
        (0..8).for_each(|_| f.prepared());
        let mut seen = Vec::new();
        while let Some(g) = f.issue() {
            f.finished(&g);
            seen.extend(g.items);
        }
        let old: Vec<Item> = (0..4)
            .flat_map(|block| (0..4).map(move |step| Item { block, step }))
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, old, "every item of the first clip, and no other");
    }

    #[test]
    fn a_decoder_that_stops_stops_the_blocks() {
        let mut f = front(100, 4, None, &Stages::default(), 4);
        f.anchored();
        (0..100).for_each(|_| f.prepared());
        let mut blocks = 0;
        while let Some(g) = f.issue() {
            blocks = blocks.max(g.items[0].block + 1);
            f.finished(&g);
        }
        assert_eq!(blocks, 4 + SPARE_BLOCKS);
    }

    #[test]
    fn four_layer_stages_are_kept_busy_by_single_items() {
        let mut f = front(
            40,
            4,
            None,
            &Stages::Grid {
                layers: 4,
                steps: 1,
            },
            1,
        );
        f.anchored();
        (0..40).for_each(|_| f.prepared());
        let (mut queue, mut idle, mut clock) = (VecDeque::new(), 0, 0);
        while !f.is_complete() {
            match f.issue() {
                Some(g) => queue.push_back((clock + 4, g)),
                None if clock > 0 && !queue.iter().any(|(t, _)| *t == clock + 4) => idle += 1,
                None => {}
            }
            clock += 1;
            while queue.front().is_some_and(|(t, _)| *t <= clock) {
                let (_, g): (usize, Group) = queue.pop_front().unwrap();
                f.finished(&g);
                if g.items[0].step == 3 {
                    f.delivered();
                }
            }
        }
        assert!(
            clock <= 160 + 16 + 4,
            "{clock} ticks for 160 items, {idle} idle"
        );
    }

    proptest! {
        /// Any placement, any lanes, any order of completion that keeps each chain's order.
        #[test]
        fn every_item_runs_once_after_what_it_needs(
            blocks in 0usize..14, steps in 1usize..6, l in 1usize..5, s in 1usize..6,
            lanes in 1usize..6, swap in proptest::option::of(0usize..8), low: bool,
            choices in prop::collection::vec(0usize..6, 400),
        ) {
            let at = |block, step| Item { block, step };
            let chains = s.min(steps);
            let stages = Stages::Grid { layers: l, steps: chains };
            let mut f = front(blocks, steps, swap, &stages, lanes);
            if low {
                f.latency = Latency::Low;
            }
            let mut flying: Vec<VecDeque<Group>> = vec![VecDeque::new(); chains];
            let (mut issued, mut done) = (Vec::new(), Vec::new());
            let (mut left, mut anchors) = (0, 0);
            for choice in choices.into_iter().cycle().take(20_000) {
                while let Some(g) = f.issue() {
                    prop_assert!(g.items.len() <= lanes);
                    let diagonal = |p: &[Item]| {
                        p[1].step == p[0].step + 1 && p[0].block == p[1].block + 1
                    };
                    prop_assert!(g.items.windows(2).all(diagonal));
                    for i in &g.items {
                        let anchor = usize::from(swap.is_some_and(|at| i.block >= at));
                        prop_assert!(g.anchor < anchors && g.anchor == anchor);
                        prop_assert!(!issued.contains(i));
                        let before = i.step == 0 || done.contains(&at(i.block, i.step - 1));
                        let ahead = i.block == 0 || issued.contains(&at(i.block - 1, i.step));
                        prop_assert!(before && ahead);
                        issued.push(*i);
                    }
                    flying[g.chain].push_back(g);
                }
                if f.is_complete() {
                    break;
                }
                match choice {
                    0 if f.prepared < f.wanted() => f.prepared(),
                    1 if anchors < 2 => { anchors += 1; f.anchored(); }
                    2 if left < f.done[steps - 1] => { left += 1; f.delivered(); }
                    3 if left > 0 && !f.shown => f.shown(),
                    n => {
                        let chain = n % flying.len();
                        if let Some(g) = flying[chain].pop_front() {
                            f.finished(&g);
                            done.extend(g.items);
                        }
                    }
                }
            }
            prop_assert!(f.is_complete());
            prop_assert_eq!(done.len(), blocks * steps);
        }
    }
}
