// Package nftables is the datapath that rewrites packets: two nftables tables, one in the family ip and one in ip6,
// written over netlink. It serves what the socket datapath does not see, and everything where there is none.
//
// # Services are elements
//
// The chains, rules, sets and maps are written once. A Service is nothing but elements of these maps and sets:
//
//	frontends   address . protocol . port             -> reference (ref.go)
//	inside      the same, for clients on this node that get another backend set
//	backends    set . slot                            -> address . port
//	picks       pick                                  -> goto pick-n
//	cluster-ips address
//	rejected, dropped   address . protocol . port
//	hairpin     address . address
//	restricted  address . protocol . port
//	allowed     address . protocol . port . prefix
//
// # The way of a packet
//
// The first packet of a connection; all others follow conntrack.
//
//	prerouting, output (nat, -100)
//	  services: priority := frontends[daddr . protocol . dport]      miss: not ours
//	  service:  by the profile of the reference
//	    cluster:  source is a local pod, or mark for masquerade       ClusterIPs
//	    external: source allowed? mark for masquerade                 NodePort, VIP, externalIP
//	    local:    pods and the node itself: priority := inside[...]   the same with a Local policy
//	  pick:     goto pick-n by the reference's pick
//	  pick-n:   dnat to backends[set . random slot of n]
//	input, forward, output (filter, 0)
//	  unserved: new and not rewritten: reject, drop, or reject an undefined port of a ClusterIP
//	postrouting (nat, 100)
//	  masquerade what is marked, and a backend that reached itself
//
// The kernel's only scratch register that survives between two rules, that nft can print and that nobody else reads at
// that point is the packet's priority (a "classid" to nft): the reference of a frontend travels in it
// from the lookup to the draw, and postrouting clears it. A verdict map from frontends to chains would do without, but
// the kernel validates the whole map at every change of one element.
//
// # Order of writes
//
// All elements of a Service change in one transaction, which the kernel makes visible at once. A packet may still do
// its first lookup before a commit and the second behind it. It then draws again, and at last takes slot 0; if that is
// gone as well it is dropped and sent again by the client. Numbers of sets are used again as late as possible, so that
// it does not find another Service's backends.
//
// # Restart
//
// Open reads nothing; it tries the static part under another name. The first Apply lists the tables, gives every set the number and every backend the slot it has
// there, writes the difference and deletes what no Service claims. With nothing changed it writes nothing.
// The same happens after a failure.
package nftables
