package kubetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The users of the API server.
const (
	Admin     = "admin"             // may do everything
	KubeProxy = "system:kube-proxy" // may do what kube-proxy may do
	Nobody    = "nobody"            // may do what the test binds to it
)

// Files of a Server below its folder.
const (
	certFile       = "apiserver.crt"
	keyFile        = "apiserver.key"
	accountKeyFile = "service-accounts.key"
	tokenFile      = "tokens.csv"
)

// credentials are what the API server and its clients know each other by.
type credentials struct {
	authority []byte            // PEM certificate that signed the API server's
	tokens    map[string]string // by user
}

// newCredentials makes everything anew and writes the API server's part to dir.
func newCredentials(dir string, addrs []netip.Addr) (credentials, error) {
	c := credentials{tokens: map[string]string{Admin: rand.Text(), KubeProxy: rand.Text(), Nobody: rand.Text()}}
	var users strings.Builder
	for user, token := range c.tokens {
		fmt.Fprintf(&users, "%s,%s,%s", token, user, user)
		if user == Admin {
			users.WriteString(",system:masters")
		}
		users.WriteString("\n")
	}
	account, _, err := newKey()
	if err != nil {
		return c, err
	}
	authority, cert, key, err := newCertificate(addrs)
	if err != nil {
		return c, err
	}
	c.authority = authority
	return c, errors.Join(
		writeSecret(dir, tokenFile, []byte(users.String())),
		writeSecret(dir, accountKeyFile, account),
		writeSecret(dir, certFile, cert),
		writeSecret(dir, keyFile, key),
	)
}

// newCertificate returns a certificate for a server at these addresses, its key, and the authority that signed it.
func newCertificate(addrs []netip.Addr) (authority, cert, key []byte, err error) {
	_, authorityKey, err := newKey()
	if err != nil {
		return nil, nil, nil, err
	}
	key, serverKey, err := newKey()
	if err != nil {
		return nil, nil, nil, err
	}
	now := time.Now()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubetest"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: apiServerProgram},
		NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc"},
	}
	for _, a := range addrs {
		leaf.IPAddresses = append(leaf.IPAddresses, net.IP(a.AsSlice()))
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, authorityKey.Public(), authorityKey)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("create authority: %w", err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, serverKey.Public(), authorityKey)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("create certificate: %w", err)
	}
	return encode("CERTIFICATE", rootDER), encode("CERTIFICATE", leafDER), key, nil
}

func newKey() ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return encode("EC PRIVATE KEY", der), key, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func writeSecret(dir, name string, content []byte) error {
	return os.WriteFile(filepath.Join(dir, name), content, 0o600)
}
