//! Who a request comes from.

use std::sync::Arc;

use axum::{extract::FromRequestParts, http::request::Parts};
use sconce_tenants::{Principal, TenantEntry, Tenants};
use sconce_types::TenantId;

use crate::{access_log::RequestStats, error::ApiError, origins::Origins, traces::RequestTrace};

/// What the middleware found out about a request, kept among its extensions.
#[derive(Clone)]
pub(crate) struct Identity {
    /// Whom its key speaks for; where no key is needed, everybody is the only tenant and
    /// may do everything.
    pub(crate) speaker: Option<Principal>,
    pub(crate) tenants: Arc<Tenants>,
    /// Where no key is needed: what tells other sites' requests from the user's own.
    pub(crate) origins: Option<Arc<Origins>>,
}

/// The request's id as its client knows it.
#[derive(Clone)]
pub(crate) struct ClientRequestId(pub(crate) Arc<str>);

/// A request that the server itself makes for a tenant. No client can set it.
#[derive(Clone, Copy)]
pub(crate) struct OnBehalf(pub(crate) TenantId);

/// A caller who speaks for a tenant.
pub(crate) struct TenantAuth {
    pub(crate) id: TenantId,
    pub(crate) request_id: Arc<str>,
    /// Where requests are logged: what the line will say.
    pub(crate) stats: Option<Arc<RequestStats>>,
    /// Where requests are traced, and this one is sampled: what its spans will say.
    pub(crate) trace: Option<Arc<RequestTrace>>,
    tenants: Arc<Tenants>,
}

impl TenantAuth {
    /// A tenant for which the program itself asks; the engine knows its limits.
    pub(crate) fn in_process(id: TenantId, tenants: Arc<Tenants>) -> Self {
        Self { id, request_id: Arc::from(""), stats: None, trace: None, tenants }
    }

    /// What is known of the tenant; it may be gone since the key was looked up.
    pub(crate) fn entry(&self) -> Option<&TenantEntry> {
        self.tenants.get(self.id)
    }

    /// Whether tenants are configured: if not, everybody is the only one.
    pub(crate) fn is_configured(&self) -> bool {
        self.tenants.needs_key()
    }

    /// How many tenants there are beside it, and itself.
    pub(crate) fn num_tenants(&self) -> usize {
        self.tenants.iter().len()
    }

    /// Whether it may use a model of this name.
    pub(crate) fn may_use(&self, model: &str) -> bool {
        let models = self.entry().and_then(|entry| entry.models.as_ref());
        models.is_none_or(|models| models.iter().any(|name| name == model))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for TenantAuth {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Identity { speaker, tenants, .. } = identity(parts)?;
        let id = match speaker {
            None => TenantId(0),
            Some(Principal::Tenant(id)) => id,
            Some(Principal::Admin) => return Err(ApiError::not_a_tenant()),
        };
        let request_id = parts.extensions.get::<ClientRequestId>();
        let request_id = request_id.map_or_else(|| Arc::from(""), |id| Arc::clone(&id.0));
        let stats = parts.extensions.get::<Arc<RequestStats>>().cloned();
        let trace = parts.extensions.get::<Arc<RequestTrace>>().cloned();
        Ok(Self { id, request_id, stats, trace, tenants })
    }
}

/// The same, where a form is taken, which a browser sends to another site without asking it.
pub(crate) struct OfOwnSite(pub(crate) TenantAuth);

impl<S: Send + Sync> FromRequestParts<S> for OfOwnSite {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Identity { origins, .. } = identity(parts)?;
        if origins.is_some_and(|origins| origins.is_cross_site(parts)) {
            return Err(ApiError::cross_site());
        }
        TenantAuth::from_request_parts(parts, state).await.map(Self)
    }
}

/// A caller who may administrate.
pub(crate) struct AsAdmin {
    pub(crate) tenants: Arc<Tenants>,
}

impl<S: Send + Sync> FromRequestParts<S> for AsAdmin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Identity { speaker, tenants, origins } = identity(parts)?;
        if origins.is_some_and(|origins| origins.is_cross_site(parts)) {
            return Err(ApiError::cross_site());
        }
        match speaker {
            None | Some(Principal::Admin) => Ok(Self { tenants }),
            Some(Principal::Tenant(_)) => Err(ApiError::not_an_admin()),
        }
    }
}

/// A caller of either kind.
pub(crate) enum AsAnyone {
    Tenant(TenantAuth),
    Admin(AsAdmin),
}

impl<S: Send + Sync> FromRequestParts<S> for AsAnyone {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match identity(parts)?.speaker {
            Some(Principal::Admin) => {
                AsAdmin::from_request_parts(parts, state).await.map(Self::Admin)
            }
            _ => TenantAuth::from_request_parts(parts, state).await.map(Self::Tenant),
        }
    }
}

/// A caller who may look at the engine: at all of it, or at a tenant's own part.
pub(crate) enum AsWatcher {
    All(AsAdmin),
    Tenant(TenantAuth),
}

impl<S: Send + Sync> FromRequestParts<S> for AsWatcher {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match identity(parts)?.speaker {
            Some(Principal::Tenant(_)) => {
                TenantAuth::from_request_parts(parts, state).await.map(Self::Tenant)
            }
            _ => AsAdmin::from_request_parts(parts, state).await.map(Self::All),
        }
    }
}

impl AsWatcher {
    /// The tenants as they were when the request came.
    pub(crate) fn tenants(&self) -> &Arc<Tenants> {
        match self {
            Self::All(caller) => &caller.tenants,
            Self::Tenant(caller) => &caller.tenants,
        }
    }
}

fn identity(parts: &Parts) -> Result<Identity, ApiError> {
    let identity = parts.extensions.get::<Identity>().cloned();
    identity.ok_or_else(|| ApiError::internal("a route without a key check"))
}
