// Package kubetest runs a real Kubernetes API server, with an etcd of its own, on a host of the laboratory
// (package lab). There is nothing else of a cluster: no controllers, no kubelets. Services get their ClusterIPs and
// NodePorts from the API server as everywhere; Nodes and EndpointSlices are written by whoever uses this package
// ([Node], [EndpointSlice]).
//
// The programs are those of the module in test/kube, and [Programs] finds them. They need about three seconds to
// start. Authorization is RBAC with the roles every cluster has, so [KubeProxy] may do what kube-proxy may do and
// nothing else.
//
// The API server can be stopped and run again ([Server.Stop], [Server.Run]); etcd goes on meanwhile. Both are killed with
// their host, at the latest. Objects are not flushed to disk: they outlive the processes but not the machine.
package kubetest
