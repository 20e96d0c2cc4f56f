package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
	discovery "k8s.io/api/discovery/v1"

	"github.com/lbproxy/lbproxy/test/lab"
)

// stage is a world with an agent in it.
type stage struct {
	mode    string // of the agent
	program string
	world   *lab.World
	dir     string // manifests the agent watches
	hosts   map[string]*lab.Host
	agent   *lab.Process
	now     backends
	loads   []*lab.Load

	sockets bool   // a hook serves sockets on the node
	why     string // there is none
}

// openStage builds the world, starts the agent in it, and returns when all Services work. Close it also after an error.
func openStage(ctx context.Context, mode, program string) (*stage, error) {
	s := &stage{mode: mode, program: program, hosts: map[string]*lab.Host{}, now: firstBackends()}
	var err error
	if s.world, err = lab.New(ctx, lab.Config{}); err != nil {
		return s, err
	}
	if err := s.addPods(ctx); err != nil {
		return s, err
	}
	if s.dir, err = os.MkdirTemp("", "lbproxy-demo-"); err != nil {
		return s, fmt.Errorf("make directory for manifests: %w", err)
	}
	if err := copyManifests(s.dir); err != nil {
		return s, err
	}
	if err := s.startAgent(ctx); err != nil {
		return s, err
	}
	r, _ := find(s.agent.Output(), isDatapaths)
	if r.NFTables != "on" {
		return s, &agentError{said: "nftables is " + r.NFTables}
	}
	s.sockets = r.EBPF == "on"
	if !s.sockets {
		s.why = strings.TrimPrefix(r.EBPF, "off: ")
	}
	return s, nil
}

// close removes everything.
func (s *stage) close() error {
	var errs []error
	if s.world != nil {
		errs = append(errs, s.world.Close())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// addPods makes the pods one after the other, which gives them their addresses, and starts all servers at once.
func (s *stage) addPods(ctx context.Context) error {
	s.hosts[fromNode], s.hosts[fromOutside] = s.world.Node, s.world.Outside
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i, p := range pods {
		node := s.world.Node
		if p.node == "node2" {
			node = s.world.Node2
		}
		h, err := s.world.AddPod(node, p.name)
		if err == nil {
			err = ctx.Err()
		}
		if v4, v6 := addrs(i); err == nil && (h.Addr4 != v4 || h.Addr6 != v6) {
			err = fmt.Errorf("pod %s has address %s instead of %s", p.name, h.Addr4, v4)
		}
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		s.hosts[p.name] = h
		group.Go(func() error { return errors.Join(groupCtx.Err(), serve(h, p)) })
	}
	return group.Wait()
}

func serve(h *lab.Host, p pod) error {
	t := targets[p.service]
	for _, network := range t.networks {
		for _, wildcard := range []string{"0.0.0.0", "[::]"} {
			if err := h.Serve(network, fmt.Sprintf("%s:%d", wildcard, t.port), p.name); err != nil {
				return err
			}
		}
	}
	return nil
}

// edit changes the EndpointSlices in a manifest. The agent sees it at once.
func (s *stage) edit(name string, change func(*discovery.EndpointSlice)) error {
	path := filepath.Join(s.dir, name)
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read manifest: %w", err)
	}
	changed, err := editSlices(old, change)
	if err != nil {
		return fmt.Errorf("edit manifest %s: %w", name, err)
	}
	return replaceFile(path, changed)
}
