// Package datapath says what a node must do with Service traffic, in values that know neither
// Kubernetes nor the kernel.
//
// A [Service] is everything the node must do for one Kubernetes Service. It has [Port]s, one per service
// port and address family. A Port has backend sets and [Frontend]s: addresses a client may dial. Each
// frontend says which set a client on this node gets and which one a client elsewhere gets, what happens
// when that set is empty, whose source address is masqueraded and who may connect. Every policy of
// Kubernetes is decided before a value of this package exists (package endpoints); a [Datapath] only
// writes what it is told.
//
// # Contract of a Datapath
//
// Apply takes the Services that changed, or the whole world ([Update.Full]). It returns when the kernel
// has them. It may be called again with the same or a newer Update after an error; in between the kernel
// holds the last good state of every Service. A fault of one Service never keeps another from being
// written: Apply writes what it can and joins the errors, each as a [ServiceError].
//
// The order inside Apply is make before break: new backends first, then the one atomic step that
// publishes them, then the retirement of what nothing points at any more. At no instant does a frontend
// with a backend lead nowhere.
//
// Close releases the process's handles and leaves the kernel state working; removing it is a separate
// and explicit act of each datapath package (Cleanup).
//
// # Frontends are concrete
//
// NodePorts arrive here already multiplied by the node's accepted addresses, so a datapath needs no idea of
// a NodePort. No two Services passed to a Datapath hold the same (address, port, protocol): package endpoints
// settles such conflicts.
package datapath
