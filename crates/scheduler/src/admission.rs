//! What a request may expect if it came now.

use sconce_types::TenantId;

use crate::{Scheduler, SchedulerConfig, SchedulingPolicy, StepModel, StepWork};

/// What a request may expect, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// To its first token.
    pub ttft: f64,
    /// From each token to the next.
    pub tpot: f64,
}

impl Scheduler {
    /// Seconds from one request's end to the next, while as many run as do now.
    #[must_use]
    pub fn seconds_per_end(&self, model: &StepModel) -> f64 {
        let rows = self.running.len().max(1) as f64;
        let step = model.predict(StepWork { decode: rows, ..StepWork::default() });
        step * self.mean_output / rows
    }

    /// What a request of a tenant with a prompt of so many tokens may expect if it came
    /// now, with steps that take what `model` says.
    ///
    /// Prompts wait for the step's budget and for seats. Who is served first come, first
    /// served waits for all who came before; who has a fair share waits for its own queue
    /// at its share's pace, or for all if that is sooner. Outputs are taken to be as long
    /// as they were of late.
    #[must_use]
    pub fn predict(&self, model: &StepModel, tenant: TenantId, prompt_len: usize) -> Prediction {
        let SchedulerConfig { max_num_seqs, max_num_batched_tokens, policy, .. } = self.config;
        let sequences = self.running.iter().map(|running| &self.sequences[&running.id]);
        let (mut decodes, mut prefilling, mut context) = (0.0, 0.0, 0.0);
        for sequence in sequences {
            context += sequence.num_computed_tokens as f64;
            if sequence.is_decode() {
                decodes += 1.0;
            } else {
                prefilling += sequence.num_pending() as f64;
            }
        }
        let seats = max_num_seqs as f64;
        let running = self.running.len() as f64;
        let waiting = self.accounts.num_waiting() as f64;
        // As the step is while others' prompts and this one are computed.
        let rows = (running + waiting + 1.0).min(seats);
        let mean_context = if running > 0.0 { context / running } else { 0.0 };
        let decoding = StepWork { prefill: 0.0, decode: rows, attended: rows * mean_context };
        let budget = max_num_batched_tokens as f64;
        let room = (budget - decodes).max(1.0);
        let full = StepWork {
            prefill: room,
            decode: decodes,
            attended: decodes * mean_context + room * (prompt_len as f64) / 2.0,
        };
        let full_step = model.predict(full);
        let pace = room / full_step;
        let prompt = prompt_len as f64;
        let mut all = self.accounts.waiting_tokens() as f64 + prefilling;
        let stats = self.tenant_stats(tenant);
        let (mut own, own_waiting) = (stats.waiting_tokens as f64, stats.waiting as f64);
        (all, own) = (all + prompt, own + prompt);
        let is_fair = policy == SchedulingPolicy::Fair;
        let share = if is_fair { self.accounts.share_if_active(tenant) } else { 1.0 };
        // Who was served more than others lately lets them catch up first.
        let cost_pace = (room + decodes * self.costs.decode) / full_step;
        let debt = if is_fair { self.accounts.debt(tenant) / cost_pace } else { 0.0 };
        // Those who come later with less served go before it, the more the busier it is.
        let overtaken = if is_fair { 1.0 / (1.0 - self.saturation).max(1e-6) } else { 1.0 };
        let for_all = all / pace * overtaken;
        let for_prompts = if is_fair {
            // What it has saved up is served before anybody else's.
            let saved = self.accounts.credit(tenant).min(own);
            (debt + (saved + (own - saved) / share) / pace).min(for_all)
        } else {
            for_all
        };
        // Whoever has to wait for a seat waits for others to end.
        let own_seats = stats.running as f64 + own_waiting + 1.0;
        let has_right = is_fair && own_seats <= (share * seats).max(1.0);
        let for_seat = if running + waiting < seats || has_right {
            0.0
        } else {
            // Each that takes a seat has its prompt computed first, while all others wait.
            let without = model.predict(StepWork { prefill: 0.0, ..full });
            let mean_prompt = all / (waiting + 1.0);
            let prefill = mean_prompt * (full_step - without) / room;
            let decode = self.mean_output.max(1.0) * model.predict(decoding) / rows;
            let ends = 1.0 / (decode + prefill);
            let behind_all = (running + waiting + 1.0 - seats) / ends * overtaken;
            let behind_own = debt + (own_waiting + 1.0) / (ends * share);
            if is_fair { behind_all.min(behind_own) } else { behind_all }
        };
        // Where all prompts fit one step, that step is what it takes; otherwise the last of
        // its own ends with a step that others fill.
        let (for_prompts, last) =
            if all <= room { (0.0, 0.0) } else { (for_prompts, 0.5 * full_step) };
        let context = decodes * mean_context + prompt * prompt / 2.0;
        let alone = StepWork { prefill: all.min(room), decode: decodes, attended: context };
        let ttft = (for_prompts.max(for_seat) + last).max(model.predict(alone));
        Prediction { ttft, tpot: model.predict(decoding) }
    }
}
