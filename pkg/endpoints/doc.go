// Package endpoints decides what a node has to do for every Kubernetes Service.
//
//	Source ──▶ Store ──▶ resolve (pure, one Service at a time) ──▶ datapath.Update
//
// A [Source] hands over Services, EndpointSlices and the own Node. The [Store] boils each down to what is read of it
// and marks its Service dirty. [Store.Take] resolves the dirty Services to values of package datapath. All of
// Kubernetes' policy is in this package, and none of it anywhere else.
//
// # Contract
//
// The cost of an event is that of its Service, whatever the number of Services. Exceptions are changes of the node: of
// its zone or of how pods are told (all Services), of its addresses (those with NodePorts or source ranges).
//
// Nothing is handed out before the source has called [Store.Synced]. The first update is Full, later ones carry what
// changed. A Service that resolves to what was handed out last is not handed out again, unless [Store.Retry] said that
// the datapath does not have it. No two Services handed out hold the same address, port and protocol.
//
// NodePorts need to know the node's addresses. Call [Store.SetNodeAddrs] (with [ListNodeAddrs], or from
// [WatchNodeAddrs]) before the source runs, or the first update may lack NodePorts that the kernel still has
// from before a restart.
//
// Bad input is never an error. Each part of an object that cannot be used is one [Problem]: a line that names object,
// field and what is wrong, logged once. Everything else of the object works.
//
// # Which rule is where
//
//   - parse.go: how addresses, CIDRs, ports and protocols are read, and which addresses are refused
//   - service.go: what is read of a Service; which Services are ours; source ranges; affinity
//   - slice.go: what is read of an EndpointSlice
//   - node.go: what is read of the Node; which addresses NodePorts answer on
//   - config.go: what the administrator decides; how pods are told from others
//   - backends.go: merging slices; conditions, terminating endpoints, topology hints
//   - frontends.go: which addresses a Service has; masquerade; who may connect to a load balancer's VIP
//   - resolve.go: traffic policies, and what an empty backend set means
//   - claims.go: who owns an address that several Services want
//   - store.go, take.go, equal.go: state, dirtiness, what is handed out
//   - problems.go: what is wrong with the objects
//   - kube.go: the Kubernetes API as source, the only user of client-go
//   - manifest.go, decode.go: files as source
//   - addresses.go: the addresses of the node's interfaces
package endpoints
