//! Many prompts at once.

use std::collections::VecDeque;

use futures::{Stream, StreamExt as _, stream};
use sconce_engine::{End, RequestError};
use sconce_types::SamplingParams;

use crate::{Completion, Error, Sconce};

/// A whole completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The prompt's place among those that were given.
    pub index: usize,
    /// The text.
    pub text: String,
    /// Why it ended.
    pub finish: End,
    /// Tokens generated, the end token included.
    pub num_tokens: usize,
}

impl Sconce {
    /// Completes prompts, and gives the completions back in the prompts' order. Prompts are
    /// taken from the iterator as the engine has room; as many run at once as it has sequences.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), sconce::Error> {
    /// # let sconce = sconce::Sconce::builder("smollm2-135m-instruct").start()?;
    /// let numbers = (1..=1000).map(|n| format!("{n} in words is"));
    /// for completion in sconce.generate(numbers, sconce::SamplingParams::default()) {
    ///     println!("{}", completion?.text);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn generate<I>(&self, prompts: I, params: SamplingParams) -> Generate<'_, I::IntoIter>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        Generate {
            sconce: self,
            params,
            prompts: prompts.into_iter(),
            running: VecDeque::new(),
            next_index: 0,
        }
    }

    /// The same for async code, with the completions as they finish.
    pub fn generate_stream<I>(
        &self,
        prompts: I,
        params: SamplingParams,
    ) -> impl Stream<Item = Result<Generated, Error>> + use<'_, I>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        let run = move |(index, prompt): (usize, I::Item)| {
            let completion = self.complete(prompt.as_ref(), params.clone());
            async move { Ok(completion?.whole(index).await?) }
        };
        stream::iter(prompts.into_iter().enumerate()).map(run).buffer_unordered(self.window())
    }

    /// Completions that run at once.
    fn window(&self) -> usize {
        self.engine().limits().scheduler.max_num_seqs
    }
}

/// Completions of prompts, in their order.
pub struct Generate<'a, I> {
    sconce: &'a Sconce,
    params: SamplingParams,
    prompts: I,
    running: VecDeque<Result<Completion, Error>>,
    next_index: usize,
}

impl<I: Iterator<Item: AsRef<str>>> Iterator for Generate<'_, I> {
    type Item = Result<Generated, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.running.len() < self.sconce.window()
            && let Some(prompt) = self.prompts.next()
        {
            self.running.push_back(self.sconce.complete(prompt.as_ref(), self.params.clone()));
        }
        let completion = self.running.pop_front()?;
        let index = self.next_index;
        self.next_index += 1;
        Some(completion.and_then(|completion| Ok(completion.blocking_whole(index)?)))
    }
}

impl Completion {
    async fn whole(mut self, index: usize) -> Result<Generated, RequestError> {
        let mut text = String::new();
        while let Some(piece) = Self::next(&mut self).await {
            text += &piece?;
        }
        Ok(self.generated(index, text))
    }

    fn blocking_whole(mut self, index: usize) -> Result<Generated, RequestError> {
        let mut text = String::new();
        while let Some(piece) = self.blocking_next() {
            text += &piece?;
        }
        Ok(self.generated(index, text))
    }

    fn generated(&self, index: usize, text: String) -> Generated {
        let finish = self.finish_reason().expect("a completion without an error has finished");
        Generated { index, text, finish, num_tokens: self.num_tokens() }
    }
}
