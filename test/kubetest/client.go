package kubetest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/lbproxy/lbproxy/test/lab"
)

// url is where the API server is, as its nodes know it. Like the address in kube-proxy's own kubeconfig it is no
// Service's.
func (s *Server) url() string {
	return "https://" + netip.AddrPortFrom(s.cfg.Host.Addr4, apiServerPort).String()
}

// RESTConfig lets this process speak to the API server as one of its users, through a host's network.
func (s *Server) RESTConfig(user string, from *lab.Host) *rest.Config {
	return &rest.Config{
		Host:            s.url(),
		BearerToken:     s.credentials.tokens[user],
		TLSClientConfig: rest.TLSClientConfig{CAData: s.credentials.authority},
		Dial:            dialFrom(from),
		QPS:             -1,
	}
}

// Client returns a client that may do everything.
func (s *Server) Client() (kubernetes.Interface, error) {
	client, err := kubernetes.NewForConfig(s.RESTConfig(Admin, s.cfg.Host))
	if err != nil {
		return nil, fmt.Errorf("create client: %w", err)
	}
	return client, nil
}

// Kubeconfig writes a kubeconfig for one of the users and returns its path. It works on every machine of the
// laboratory.
func (s *Server) Kubeconfig(user string) (string, error) {
	path := filepath.Join(s.cfg.Dir, strings.ReplaceAll(user, ":", "-")+".kubeconfig")
	err := clientcmd.WriteToFile(api.Config{
		Clusters: map[string]*api.Cluster{
			"lab": {Server: s.url(), CertificateAuthorityData: s.credentials.authority},
		},
		AuthInfos:      map[string]*api.AuthInfo{user: {Token: s.credentials.tokens[user]}},
		Contexts:       map[string]*api.Context{"lab": {Cluster: "lab", AuthInfo: user}},
		CurrentContext: "lab",
	}, path)
	if err != nil {
		return "", fmt.Errorf("write kubeconfig: %w", err)
	}
	return path, nil
}

// dialFrom makes a dialer of a host's. A socket stays in the namespace it was made in, and Dial makes it on the
// calling goroutine as long as the address is not a name.
func dialFrom(h *lab.Host) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		var conn net.Conn
		err := h.Do(func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}
}
