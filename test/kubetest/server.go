package kubetest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/lbproxy/lbproxy/test/lab"
)

const (
	etcdProgram      = "etcd"
	apiServerProgram = "kube-apiserver"

	apiServerPort = 6443
	etcdClients   = "http://127.0.0.1:2379"
	etcdPeers     = "http://127.0.0.1:2380"
)

// Config says where an API server runs.
type Config struct {
	Bin  string    // folder with the programs
	Dir  string    // folder for keys, tokens and data
	Host *lab.Host // must not run another one

	// Services are the ranges ClusterIPs come from, the first one that of the primary family. The default are
	// the laboratory's.
	Services []netip.Prefix
}

// Server is an API server and its etcd.
type Server struct {
	cfg         Config
	credentials credentials

	mu     sync.Mutex
	etcd   *lab.Process
	server *lab.Process
}

// Start starts both programs and returns when the API server is ready.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if len(cfg.Services) == 0 {
		cfg.Services = []netip.Prefix{lab.Services4, lab.Services6}
	}
	addrs := []netip.Addr{cfg.Host.Addr4, cfg.Host.Addr6}
	for _, p := range cfg.Services {
		// The API server gives itself the first address of each range.
		addrs = append(addrs, p.Masked().Addr().Next())
	}
	credentials, err := newCredentials(cfg.Dir, addrs)
	if err != nil {
		return nil, fmt.Errorf("start api server: %w", err)
	}
	s := &Server{cfg: cfg, credentials: credentials}
	// The election timeout is what etcd waits for before it leads itself: most of its time to start.
	s.etcd, err = cfg.Host.Start(filepath.Join(cfg.Bin, etcdProgram), "--log-level=warn", "--unsafe-no-fsync",
		"--data-dir="+filepath.Join(cfg.Dir, "etcd"), "--heartbeat-interval=20", "--election-timeout=100",
		"--listen-client-urls="+etcdClients, "--advertise-client-urls="+etcdClients,
		"--listen-peer-urls="+etcdPeers, "--initial-advertise-peer-urls="+etcdPeers,
		"--initial-cluster=default="+etcdPeers)
	if err != nil {
		return nil, fmt.Errorf("start api server: %w", err)
	}
	if err := s.Run(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Run starts the API server and returns when it is ready. It must not run already.
func (s *Server) Run(ctx context.Context) error {
	file := func(name string) string { return filepath.Join(s.cfg.Dir, name) }
	// Without sending Retry-After, a server that is asked to end waits a minute for those who watch.
	server, err := s.cfg.Host.Start(filepath.Join(s.cfg.Bin, apiServerProgram), "--shutdown-send-retry-after",
		"--etcd-servers="+etcdClients,
		"--bind-address=::", fmt.Sprintf("--secure-port=%d", apiServerPort),
		"--advertise-address="+s.cfg.Host.Addr(s.cfg.Services[0].Addr().Is6()).String(),
		"--tls-cert-file="+file(certFile), "--tls-private-key-file="+file(keyFile),
		"--token-auth-file="+file(tokenFile), "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+file(accountKeyFile),
		"--service-account-signing-key-file="+file(accountKeyFile),
		"--service-cluster-ip-range="+ranges(s.cfg.Services))
	if err != nil {
		return fmt.Errorf("start api server: %w", err)
	}
	s.mu.Lock()
	s.server = server
	s.mu.Unlock()
	return s.waitReady(ctx, server)
}

func ranges(prefixes []netip.Prefix) string {
	var all []string
	for _, p := range prefixes {
		all = append(all, p.String())
	}
	return strings.Join(all, ",")
}

// waitReady returns when the API server says that it is ready, or the reason why it never will.
func (s *Server) waitReady(ctx context.Context, server *lab.Process) error {
	client, err := rest.HTTPClientFor(s.RESTConfig(Admin, s.cfg.Host))
	if err != nil {
		return fmt.Errorf("wait for api server: %w", err)
	}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-s.etcd.Done():
			return fmt.Errorf("wait for api server: etcd ended: %w\n%s", errOf(s.etcd), end(s.etcd.Output()))
		case <-server.Done():
			return fmt.Errorf("wait for api server: it ended: %w\n%s", errOf(server), end(server.Output()))
		case <-ctx.Done():
			return fmt.Errorf("wait for api server: %w\n%s", ctx.Err(), end(server.Output()))
		case <-tick.C:
			if ready(ctx, client, s.url()) {
				return nil
			}
		}
	}
}

// ready asks once. Every failure is the same answer: not yet.
func ready(ctx context.Context, client *http.Client, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Stop sends the API server a signal that ends it and waits until it is gone.
func (s *Server) Stop(signal os.Signal) error {
	s.mu.Lock()
	server := s.server
	s.mu.Unlock()
	if err := server.Signal(signal); err != nil {
		return fmt.Errorf("stop api server: %w", err)
	}
	<-server.Done()
	return nil
}

// Close kills both programs. What they wrote stays in the folder.
func (s *Server) Close() error {
	s.mu.Lock()
	server := s.server
	s.mu.Unlock()
	var errs []error
	if server != nil {
		errs = append(errs, server.Kill())
	}
	return errors.Join(append(errs, s.etcd.Kill())...)
}

// Output returns the end of what the API server has logged since it was run last.
func (s *Server) Output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server.Output()
}

// errOf returns why a process ended; to end by itself is always a fault here.
func errOf(p *lab.Process) error {
	if err := p.Wait(); err != nil {
		return err
	}
	return errors.New("without an error")
}

// end returns the last lines.
func end(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}
