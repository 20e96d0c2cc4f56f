// Package lab builds a small world of network namespaces in which Service traffic is real: a node with
// pods, a second node with pods, and a client outside of the cluster.
//
//	                 router (bridge 172.18.0.1)
//	      ┌────────────────┼────────────────┐
//	node 172.18.0.11   node2 .12        outside .100
//	  pods 10.244.1.0/24  pods 10.244.2.0/24
//
// Every link is a veth pair. A pod hangs on its node by routes (its node end carries the gateway address,
// as the ptp CNI plugin does it), so that traffic between two pods of one node is always routed, and what
// bridges do with netfilter does not matter. outside reaches the pods, the Service ranges and the virtual
// addresses through node; the others send what they have no route for to the router, which answers
// that it is unreachable. Addresses are in plan.go. All of it is dual-stack.
//
// # What a host is
//
// A [Host] is a namespace, a cgroup and, as soon as it has to do something, a worker: the running program
// executed again, which serves and dials from inside. Therefore [Main] has to be called first in main or
// TestMain. Programs under test run beside it ([Host.Start]).
//
// node and its pods share one cgroup ([World.Cgroup]), the place for socket hooks; node2 and outside have cgroups of
// their own, so that a hook never sees them. Nothing outside of these namespaces and cgroups is touched.
//
// # What stays
//
// Nothing. [World.Close] removes all of it, also after a failed [New]. Namespaces have no names and vanish with
// their last user; when the process that made the world is killed, workers and programs die with it, and a janitor
// process removes cgroups and mounts. Should even that be killed, the next New cleans up after it.
//
// # Errors
//
// An error returned by this package means that the laboratory failed. What became of a connection, a refusal or
// a silence included, is a result and stands in [Answer].
package lab
