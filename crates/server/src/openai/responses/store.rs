//! Responses that later requests may go on from, in memory and within a bound.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sconce_types::TenantId;
use serde::Serialize;
use serde_json::Value;

use crate::generation::conversation::Message;

/// What a kept response takes beside its texts, about.
const BYTES_A_RESPONSE: usize = 1024;
/// What a value of JSON and a message take beside their texts, about.
const BYTES_A_VALUE: usize = 64;

/// Keeps each tenant's latest responses: of the whole bound every tenant has an equal part,
/// so that none can push out another's.
pub(crate) struct ResponseStore {
    most_bytes: usize,
    tenants: Mutex<HashMap<TenantId, Kept>>,
}

/// One tenant's, oldest first.
#[derive(Default)]
struct Kept {
    bytes: usize,
    order: VecDeque<Arc<str>>,
    by_id: HashMap<Arc<str>, Entry>,
}

struct Entry {
    /// The conversation, the response's own message last.
    messages: Arc<[Message]>,
    response: Value,
    bytes: usize,
}

/// A conversation up to a response: what was stored, and what the request adds.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) before: Option<Arc<[Message]>>,
    pub(crate) added: Vec<Message>,
}

impl History {
    /// All of it.
    pub(crate) fn messages(&self) -> Vec<Message> {
        self.before.iter().flat_map(|before| before.iter()).chain(&self.added).cloned().collect()
    }

    fn bytes(&self) -> usize {
        let before = self.before.iter().flat_map(|before| before.iter());
        before.chain(&self.added).map(size_of_message).sum()
    }
}

/// Keeps one response once it is there.
pub(crate) struct Keeper {
    store: Arc<ResponseStore>,
    tenant: TenantId,
    most_bytes: usize,
    history: History,
}

impl ResponseStore {
    pub(crate) fn new(most_bytes: usize) -> Self {
        Self { most_bytes, tenants: Mutex::default() }
    }

    /// For a response to this conversation, of one of so many tenants; `None` where it is
    /// larger than all the room, so that nothing is held until then.
    pub(crate) fn keeper(
        self: &Arc<Self>,
        tenant: TenantId,
        num_tenants: usize,
        history: History,
    ) -> Option<Keeper> {
        let most_bytes = self.most_bytes / num_tenants.max(1);
        let fits = history.bytes() + BYTES_A_RESPONSE <= most_bytes;
        fits.then(|| Keeper { store: Arc::clone(self), tenant, most_bytes, history })
    }

    /// The conversation up to a response and with it.
    pub(crate) fn messages(&self, tenant: TenantId, id: &str) -> Option<Arc<[Message]>> {
        Some(Arc::clone(&self.lock().get(&tenant)?.by_id.get(id)?.messages))
    }

    pub(crate) fn response(&self, tenant: TenantId, id: &str) -> Option<Value> {
        Some(self.lock().get(&tenant)?.by_id.get(id)?.response.clone())
    }

    /// Says whether there was one.
    pub(crate) fn delete(&self, tenant: TenantId, id: &str) -> bool {
        let mut tenants = self.lock();
        let Some(kept) = tenants.get_mut(&tenant) else { return false };
        let Some(entry) = kept.by_id.remove(id) else { return false };
        kept.bytes -= entry.bytes;
        kept.order.retain(|other| &**other != id);
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Kept>> {
        // Every change is whole before the lock is given back.
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// Keeps a response and the messages that it adds; the oldest ones make room. One that is
    /// larger than all the room is not kept.
    pub(crate) fn keep(self, id: &str, response: &impl Serialize, added: Vec<Message>) {
        let response = serde_json::to_value(response).expect("its keys are strings");
        let Self { store, tenant, most_bytes, mut history } = self;
        history.added.extend(added);
        let bytes = BYTES_A_RESPONSE + size(&response) + history.bytes();
        if bytes > most_bytes {
            return;
        }
        let mut tenants = store.lock();
        let kept = tenants.entry(tenant).or_default();
        while kept.bytes + bytes > most_bytes {
            let oldest = kept.order.pop_front().expect("bytes are those of what is in the order");
            let entry = kept.by_id.remove(&oldest).expect("what is in the order is kept");
            kept.bytes -= entry.bytes;
        }
        let id: Arc<str> = id.into();
        kept.bytes += bytes;
        kept.order.push_back(Arc::clone(&id));
        kept.by_id.insert(id, Entry { messages: history.messages().into(), response, bytes });
    }
}

fn size_of_message(message: &Message) -> usize {
    let texts = [&message.name, &message.reasoning, &message.call_id];
    let texts: usize = texts.into_iter().flatten().map(String::len).sum();
    let call = |call: &crate::generation::tools::ToolCall| {
        let arguments: usize =
            call.arguments.iter().map(|(key, value)| key.len() + size(value)).sum();
        BYTES_A_VALUE + call.id.len() + call.name.len() + arguments
    };
    let calls: usize = message.calls.iter().map(call).sum();
    2 * BYTES_A_VALUE + message.text.len() + texts + calls
}

fn size(value: &Value) -> usize {
    BYTES_A_VALUE
        + match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(size).sum(),
            Value::Object(fields) => {
                fields.iter().map(|(key, value)| key.len() + size(value)).sum()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::generation::conversation::Role;

    fn keep(store: &Arc<ResponseStore>, tenant: u32, id: &str, text: &str) {
        let said = Message::new(Role::User, text);
        let history = History { before: None, added: vec![said] };
        let Some(keeper) = store.keeper(TenantId(tenant), 2, history) else { return };
        keeper.keep(id, &json!({ "id": id }), vec![Message::new(Role::Assistant, "yes")]);
    }

    #[test]
    fn the_oldest_make_room_and_tenants_are_apart() {
        let store = Arc::new(ResponseStore::new(64 << 10));
        let text = "x".repeat(6 << 10);
        for index in 0..20 {
            keep(&store, 0, &format!("a{index}"), &text);
            assert!(store.messages(TenantId(0), &format!("a{index}")).is_some());
        }
        keep(&store, 1, "b", &text);
        assert!(store.lock()[&TenantId(0)].bytes <= 32 << 10);
        assert!(store.messages(TenantId(0), "a15").is_none());
        assert_eq!(store.messages(TenantId(0), "a16").map(|messages| messages.len()), Some(2));
        assert!(store.response(TenantId(0), "b").is_none(), "another's");
        keep(&store, 1, "huge", &"x".repeat(40 << 10));
        assert!(store.response(TenantId(1), "huge").is_none());
        assert_eq!(store.response(TenantId(1), "b"), Some(json!({ "id": "b" })));
        assert!(store.delete(TenantId(1), "b") && !store.delete(TenantId(1), "b"));
        assert_eq!(store.lock()[&TenantId(1)].bytes, 0);
    }
}
