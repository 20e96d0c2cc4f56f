package nftables

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/lbproxy/lbproxy/pkg/datapath"
)

// rule is one rule of the static part of a table.
type rule struct {
	chain string
	parts phrase
}

// hook says where a base chain sits. The priorities are kube-proxy's, so that what is ordered around it stays in order.
type hook struct {
	chain    string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
}

var hooks = []hook{
	{"nat-prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest},
	{"nat-output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest},
	{"nat-postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource},
	{"filter-input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter},
	{"filter-forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter},
	{"filter-output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter},
}

func hookChains() []string {
	names := make([]string, len(hooks))
	for i, h := range hooks {
		names[i] = h.chain
	}
	return names
}

// chains are the regular chains, apart from the pick-n ones.
var chains = []string{"services", "service", "cluster", "external", "local", "pick", "inside", "masquerade", "unserved", "refuse"}

// rules returns the static rules of a family, in order. They depend on the options and on how local pods are
// told, never on a Service. doc.go draws the way of a packet through them.
func (f *family) rules(o Options, pods datapath.LocalPods) []rule {
	s := f.sets
	newConn := ctHas(expr.CtKeySTATE, expr.CtStateBitNEW)
	dnatted, notDNATted := ctHas(expr.CtKeySTATUS, ipsDstNAT), ctLacks(expr.CtKeySTATUS, ipsDstNAT)
	profile := func(p uint32) phrase {
		return join(masked(expr.MetaKeyPRIORITY, profileMask), equals(p<<profileShift))
	}
	rules := []rule{
		{"nat-prerouting", goTo("services")},
		{"nat-output", goTo("services")},
		{"services", join(f.setPriorityFrom(s[frontendsMap]), goTo("service"))},

		{"service", join(profile(maskNonPods), goTo("cluster"))},
		{"service", join(profile(maskEveryone), goTo("external"))},
		{"service", join(profile(splitLocal), goTo("local"))},
		{"service", goTo("pick")},

		{"external", join(f.tupleIn(s[restrictedSet]), f.sourceNotIn(s[allowedSet]), drop())},
		{"external", setMark(o.MasqueradeMark)},
		{"external", goTo("pick")},

		{"local", join(f.tupleIn(s[restrictedSet]), f.sourceNotIn(s[allowedSet]), drop())},

		{"inside", join(f.setPriorityFrom(s[insideMap]), goTo("pick"))},
		{"pick", join(masked(expr.MetaKeyPRIORITY, pickMask), vmap(s[picksMap]))},

		// The scratch priority must not reach a queueing discipline, which may read it as a class.
		{"nat-postrouting", join(dnatted, clearPriority())},
		{"nat-postrouting", join(masked(expr.MetaKeyMARK, o.MasqueradeMark), equals(o.MasqueradeMark), goTo("masquerade"))},
		{"nat-postrouting", join(dnatted, f.pairIn(s[hairpinSet]), masquerade())},
		{"masquerade", clearMark(o.MasqueradeMark)},
		{"masquerade", masquerade()},

		{"filter-input", join(newConn, notDNATted, goTo("unserved"))},
		{"filter-forward", join(newConn, notDNATted, goTo("unserved"))},
		{"filter-output", join(newConn, notDNATted, goTo("unserved"))},
		{"unserved", join(f.tupleIn(s[rejectedSet]), goTo("refuse"))},
		{"unserved", join(f.tupleIn(s[droppedSet]), drop())},
		{"unserved", join(f.daddrIn(s[clusterIPSet]), goTo("refuse"))},
		// Either way a TCP client sees ECONNREFUSED. But ICMP errors are limited to about one a second to a host,
		// and a client that gets none waits for its next SYN.
		{"refuse", join(opensTCP(), reset())},
		{"refuse", f.reject()},
	}
	return append(rules, f.podRules(o, pods)...)
}

// podRules are the rules that ask whether a packet comes from a local pod: in "cluster" everything else is
// masqueraded, in "local" pods and the node itself get the backend set for clients on this node.
func (f *family) podRules(o Options, pods datapath.LocalPods) []rule {
	var fromPod []phrase
	for _, p := range pods.CIDRs {
		if p.Addr().Is6() == f.ipv6 {
			fromPod = append(fromPod, f.sourceWithin(p))
		}
	}
	for _, name := range pods.Interfaces {
		fromPod = append(fromPod, inputInterface(name))
	}
	var rules []rule
	for _, match := range fromPod {
		rules = append(rules, rule{"cluster", join(match, goTo("pick"))}, rule{"local", join(match, goTo("inside"))})
	}
	return append(rules,
		rule{"cluster", setMark(o.MasqueradeMark)},
		rule{"cluster", goTo("pick")},
		rule{"local", join(sourceIsLocal(), setMark(o.MasqueradeMark), goTo("inside"))},
		rule{"local", goTo("pick")})
}

// pickRules are the rules of the chain pick-n: two draws from the slots of a set, then slot 0. A draw misses when
// a commit takes the drawn slot away between two lookups of one packet, or when n is a rounded count
// (pickFor). Whatever finds nothing is dropped for the client to send again: a packet to a VIP never
// leaves untranslated.
func (f *family) pickRules(n uint32) []rule {
	chain, s := pickChain(n), f.sets[backendsMap]
	first := join(keepPriority(setMask), f.dnatToSlot(n, s))
	if n == 1 {
		return []rule{{chain, first}, {chain, drop()}}
	}
	return []rule{{chain, first}, {chain, f.dnatToSlot(n, s)}, {chain, f.dnatToSlot(n, s)}, {chain, goTo(pickChain(1))}}
}

func pickChain(n uint32) string { return fmt.Sprintf("pick-%d", n) }

// baseName names a chain without rules, the marker, that is created in one transaction with the static part that this
// version writes with these options.
func (f *family) baseName(o Options, pods datapath.LocalPods) (string, error) {
	sum := sha256.New()
	for _, h := range hooks {
		fmt.Fprintln(sum, h.chain, h.kind, *h.hook, *h.priority)
	}
	for _, r := range append(f.rules(o, pods), f.pickRules(2)...) {
		fmt.Fprintln(sum, r.chain)
		for _, e := range r.parts {
			b, err := expr.Marshal(byte(f.table.Family), e)
			if err != nil {
				return "", fmt.Errorf("encode rule of chain %s: %w", r.chain, err)
			}
			sum.Write(b)
		}
	}
	return layoutPrefix() + hex.EncodeToString(sum.Sum(nil)[:6]), nil
}

// ipsDstNAT is IPS_DST_NAT of the kernel's nf_conntrack_common.h.
const ipsDstNAT = 1 << 5
