package lab

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
)

// World is the whole laboratory. Its methods may be called concurrently.
type World struct {
	Node    *Host // where the agent under test runs
	Node2   *Host // another node of the cluster
	Outside *Host // a client outside of the cluster
	Router  *Host // the network between them

	name    string
	state   state
	janitor *janitor
	spawner *spawner

	mu     sync.Mutex
	hosts  []*Host
	lastIP map[*Host]int // last pod address handed out on a node
	closed bool
}

// Config are the choices of [New].
type Config struct {
	// KeepAbandoned leaves what killed worlds left on this machine in place.
	KeepAbandoned bool
}

// New builds a world without pods. It gives up, and removes what it has made, when ctx ends.
func New(ctx context.Context, cfg Config) (*World, error) {
	if !mainCalled {
		return nil, errors.New("build laboratory: lab.Main was not called at the start of the program")
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("build laboratory: network namespaces and cgroups need root")
	}
	if !cfg.KeepAbandoned {
		if err := removeAbandoned(); err != nil {
			return nil, fmt.Errorf("remove abandoned laboratory: %w", err)
		}
	}
	w := &World{spawner: newSpawner(), lastIP: map[*Host]int{}}
	if err := w.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("build laboratory: %w", err), w.Close())
	}
	return w, nil
}

func (w *World) build(ctx context.Context) error {
	var err error
	if w.name, err = newName(); err != nil {
		return err
	}
	if w.state, err = stateOf(w.name); err != nil {
		return err
	}
	if w.janitor, err = startJanitor(w.name); err != nil {
		return err
	}
	if err := w.state.create(); err != nil {
		return err
	}
	steps := []func() error{
		w.addRouter,
		func() error { w.Node, err = w.addMachine("node", nodeAddr, everywhere, forwarding); return err },
		func() error { w.Node2, err = w.addMachine("node2", node2Addr, everywhere, forwarding); return err },
		func() error { w.Outside, err = w.addMachine("outside", outsideAddr, everywhere); return err },
		w.addRoutes,
	}
	for _, step := range steps {
		if err := errors.Join(ctx.Err(), step()); err != nil {
			return err
		}
	}
	return nil
}

// Close removes everything: programs, workers, namespaces, cgroups and the bpffs. It may be called again.
func (w *World) Close() error {
	w.mu.Lock()
	hosts, closed := w.hosts, w.closed
	w.closed = true
	w.mu.Unlock()
	if closed {
		return nil
	}
	var errs []error
	for _, h := range hosts {
		errs = append(errs, h.close())
	}
	w.spawner.close()
	if w.state != (state{}) {
		errs = append(errs, w.state.remove())
	}
	if w.janitor != nil {
		errs = append(errs, w.janitor.dismiss())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove laboratory: %w", err)
	}
	return nil
}

// Cgroup returns the directory of the cgroup that holds the node and its pods and nobody else.
func (w *World) Cgroup() string { return filepath.Join(w.state.cgroup, "node") }

// BPFFS returns the directory of a BPF file system that belongs to this world.
func (w *World) BPFFS() string { return w.state.bpffs() }

// AddPod makes a pod on a node, with the next free addresses of the node's ranges.
func (w *World) AddPod(node *Host, name string) (*Host, error) {
	pods, err := w.podRange(node)
	if err != nil {
		return nil, fmt.Errorf("add pod %s: %w", name, err)
	}
	w.mu.Lock()
	w.lastIP[node] = max(w.lastIP[node], 1) + 1 // .1 is the gateway
	last := w.lastIP[node]
	w.mu.Unlock()
	if last > 254 {
		return nil, fmt.Errorf("add pod %s: no free address on %s", name, node.Name)
	}
	pod, err := w.addHost(name, node.cgroup, everywhere)
	if err != nil {
		return nil, fmt.Errorf("add pod %s: %w", name, err)
	}
	pod.node = node
	if err := pod.attach(pods, last); err != nil {
		return nil, errors.Join(fmt.Errorf("add pod %s: %w", name, err), w.RemovePod(pod))
	}
	return pod, nil
}

// RemovePod ends what runs in a pod and removes it. Its addresses are not used again.
func (w *World) RemovePod(pod *Host) error {
	w.mu.Lock()
	w.hosts = slices.DeleteFunc(w.hosts, func(h *Host) bool { return h == pod })
	w.mu.Unlock()
	if err := pod.close(); err != nil {
		return fmt.Errorf("remove pod %s: %w", pod.Name, err)
	}
	return nil
}

func (w *World) podRange(node *Host) (pair, error) {
	switch node {
	case w.Node:
		return nodePods, nil
	case w.Node2:
		return node2Pods, nil
	}
	return pair{}, fmt.Errorf("%s is not a node", node.Name)
}

// addHost makes a host without links.
func (w *World) addHost(name, cgroup string, sysctls ...[]string) (*Host, error) {
	ns, err := newNamespace(sysctls...)
	if err != nil {
		return nil, err
	}
	h := &Host{Name: name, ns: ns, cgroup: cgroup, spawner: w.spawner}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		ns.close()
		return nil, errClosed
	}
	w.hosts = append(w.hosts, h)
	return h, nil
}

func (w *World) addRouter() error {
	router, err := w.addHost("router", filepath.Join(w.state.cgroup, "outside"), everywhere, forwarding)
	if err != nil {
		return err
	}
	w.Router = router
	router.Addr4, router.Addr6 = routerAddr[0].Addr(), routerAddr[1].Addr()
	off := false
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: Uplink, TxQLen: 1000}, MulticastSnooping: &off}
	if err := router.ns.nl.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	for _, p := range routerAddr {
		if err := router.ns.addAddr(Uplink, p, true); err != nil {
			return err
		}
	}
	return router.ns.up(Uplink)
}

// addMachine makes a host on the network between the nodes.
func (w *World) addMachine(name string, addr pair, sysctls ...[]string) (*Host, error) {
	h, err := w.addHost(name, filepath.Join(w.state.cgroup, name), sysctls...)
	if err != nil {
		return nil, err
	}
	h.Addr4, h.Addr6 = addr[0].Addr(), addr[1].Addr()
	if err := connect(h.ns, Uplink, w.Router.ns, name); err != nil {
		return nil, err
	}
	if err := w.Router.ns.enslave(name, Uplink); err != nil {
		return nil, err
	}
	for i, p := range addr {
		if err := h.ns.addAddr(Uplink, p, true); err != nil {
			return nil, err
		}
		if err := h.ns.addRoute(Uplink, everything(p.Addr()), routerAddr[i].Addr()); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// addRoutes tells everybody where the pods are, and outside where the virtual addresses are.
func (w *World) addRoutes() error {
	type route struct {
		from *Host
		dst  pair
		via  pair
	}
	routes := []route{
		{w.Node, node2Pods, node2Addr},
		{w.Node2, nodePods, nodeAddr},
		{w.Outside, nodePods, nodeAddr},
		{w.Outside, node2Pods, node2Addr},
		{w.Router, nodePods, nodeAddr},
		{w.Router, node2Pods, node2Addr},
	}
	for _, v := range virtual {
		routes = append(routes, route{w.Outside, v, nodeAddr})
	}
	for _, r := range routes {
		for i := range r.dst {
			if err := r.from.ns.addRoute(Uplink, r.dst[i], r.via[i].Addr()); err != nil {
				return err
			}
		}
	}
	return nil
}

// attach hangs a pod on its node. The gateway is the address of the node's end, the same one for all pods.
func (h *Host) attach(pods pair, number int) error {
	nodeEnd := vethName(h.Name, number)
	if err := connect(h.ns, Uplink, h.node.ns, nodeEnd); err != nil {
		return err
	}
	h.Addr4, h.Addr6 = nth(pods[0], number), nth(pods[1], number)
	for i, addr := range []netip.Addr{h.Addr4, h.Addr6} {
		gateway := nth(pods[i], 1)
		err := errors.Join(
			h.ns.addAddr(Uplink, single(addr), true),
			h.node.ns.addAddr(nodeEnd, single(gateway), true),
			h.ns.addRoute(Uplink, single(gateway), netip.Addr{}),
			h.ns.addRoute(Uplink, everything(addr), gateway),
			h.node.ns.addRoute(nodeEnd, single(addr), netip.Addr{}),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// vethName names the node's end of a pod's link as CNI plugins do: veth and eight hexadecimal digits.
func vethName(pod string, number int) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%s %d", pod, number)
	return fmt.Sprintf("veth%08x", h.Sum32())
}

// nth returns the address with this last byte.
func nth(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}
