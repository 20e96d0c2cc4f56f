package endpoints

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func manifestService(name, ip string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {clusterIP: %s, ports: [{port: 80}]}\n", name, ip)
}

// manifests is a directory under watch, and what has been handed out so far.
type manifests struct {
	*testing.T
	dir  string
	s    *Store
	have map[string]string
}

func watchManifests(t *testing.T, dir string, c Config) *manifests {
	m := &manifests{T: t, dir: dir, s: NewStore(c, quiet()), have: map[string]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- (&ManifestSource{Dir: dir}).Run(ctx, m.s) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	<-m.s.Changed()
	apply(m.have, m.s.Take())
	return m
}

func (m *manifests) write(name, text string) {
	require.NoError(m, os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o644))
}

// want waits until exactly these Services are there, given as name=ClusterIP, and these problems.
func (m *manifests) want(services string, problems ...string) {
	m.Helper()
	var got string
	ok := func() bool {
		apply(m.have, m.s.Take())
		got = ""
		for _, p := range m.s.Problems() {
			got += p.String() + "\n"
		}
		for _, w := range strings.Fields(services) {
			name, ip, _ := strings.Cut(w, "=")
			if !strings.Contains(m.have[name], " "+ip+":80:") {
				return false
			}
		}
		want := strings.Join(append(problems, ""), "\n")
		return len(m.have) == len(strings.Fields(services)) && got == want
	}
	deadline := time.Now().Add(8 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			m.Fatalf("want %s and problems\n%s\nhave %v and problems\n%s", services, strings.Join(problems, "\n"), m.have, got)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestManifestsFollowed(t *testing.T) {
	dir := t.TempDir()
	m := &manifests{T: t, dir: dir}
	m.write("a.yaml", manifestService("a", "10.96.0.1")+manifestService("b", "10.96.0.2"))
	m.write("notes.txt", "kind: Service")
	m.write(".hidden.yaml", manifestService("hidden", "10.96.0.9"))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "sub.yaml"), 0o755))
	m = watchManifests(t, dir, Config{})
	m.want("a=10.96.0.1 b=10.96.0.2")

	m.write("c.yml", manifestService("c", "10.96.0.3"))
	m.want("a=10.96.0.1 b=10.96.0.2 c=10.96.0.3")
	m.write("a.yaml", manifestService("a", "10.96.0.4"))
	m.want("a=10.96.0.4 c=10.96.0.3")
	// As editors do: write another file, rename it over.
	m.write("a.yaml.tmp", manifestService("a", "10.96.0.5"))
	require.NoError(t, os.Rename(filepath.Join(dir, "a.yaml.tmp"), filepath.Join(dir, "a.yaml")))
	m.want("a=10.96.0.5 c=10.96.0.3")
	require.NoError(t, os.Rename(filepath.Join(dir, "a.yaml"), filepath.Join(dir, "z.yaml")))
	m.want("a=10.96.0.5 c=10.96.0.3")
	require.NoError(t, os.Remove(filepath.Join(dir, "z.yaml")))
	m.want("c=10.96.0.3")
}

func TestManifestsSameSizeSameTime(t *testing.T) {
	m := watchManifests(t, t.TempDir(), Config{})
	now := time.Now()
	for i := range 9 {
		ip := fmt.Sprintf("10.96.0.%d", i+1)
		m.write("a.yaml", manifestService("a", ip))
		require.NoError(t, os.Chtimes(filepath.Join(m.dir, "a.yaml"), now, now))
		m.want("a=" + ip)
	}
}

// TestManifestsConfigMap changes a directory as the kubelet changes a mounted ConfigMap.
func TestManifestsConfigMap(t *testing.T) {
	dir := t.TempDir()
	publish := func(version, ip string) {
		require.NoError(t, os.Mkdir(filepath.Join(dir, version), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, version, "a.yaml"), []byte(manifestService("a", ip)), 0o644))
		require.NoError(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
		require.NoError(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	publish("..1", "10.96.0.1")
	require.NoError(t, os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")))
	m := watchManifests(t, dir, Config{})
	m.want("a=10.96.0.1")
	start := time.Now()
	publish("..2", "10.96.0.2")
	m.want("a=10.96.0.2")
	require.Less(t, time.Since(start), manifestRescan, "by the event, not by the rescan")
}

func TestManifestsDirectoryReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "manifests")
	require.NoError(t, os.Mkdir(dir, 0o755))
	m := &manifests{T: t, dir: dir}
	m.write("a.yaml", manifestService("a", "10.96.0.1"))
	m = watchManifests(t, dir, Config{})
	m.want("a=10.96.0.1")
	require.NoError(t, os.Rename(dir, dir+".old"))
	require.NoError(t, os.Mkdir(dir, 0o755))
	m.write("a.yaml", manifestService("a", "10.96.0.2"))
	m.want("a=10.96.0.2")
}

func TestManifestsBroken(t *testing.T) {
	dir := t.TempDir()
	m := &manifests{T: t, dir: dir}
	m.write("a.yaml", manifestService("a", "10.96.0.1"))
	m.write("noip.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: noip}\nspec: {ports: [{port: 80}]}\n")
	m.write("garbage.yaml", string(bytes.Repeat([]byte{0, 7, 200}, 10<<20/3)))
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o600))
	huge, err := os.Create(filepath.Join(dir, "huge.json"))
	require.NoError(t, err)
	require.NoError(t, huge.Truncate(maxManifest+1))
	require.NoError(t, huge.Close())
	m = watchManifests(t, dir, Config{})
	others := []string{
		"file garbage.yaml: document 1 (line 1): yaml: control characters are not allowed",
		"file huge.json: is larger than 64 MiB",
		"file pipe.yaml: is not a regular file",
		"service default/noip: spec.clusterIP: is empty",
	}
	m.want("a=10.96.0.1", others...)
	// A file that breaks keeps what it held.
	m.write("a.yaml", "apiVersion: v1\nkind: [\n")
	m.want("a=10.96.0.1", append([]string{"file a.yaml: document 1 (line 1): yaml: line 2: did not find expected node content"}, others...)...)
	m.write("a.yaml", manifestService("b", "10.96.0.2"))
	m.want("b=10.96.0.2", others...)
}

func TestManifestsDuplicates(t *testing.T) {
	dir := t.TempDir()
	m := &manifests{T: t, dir: dir}
	m.write("b.yaml", manifestService("x", "10.96.0.2")+manifestService("x", "10.96.0.3"))
	m = watchManifests(t, dir, Config{})
	twice := "file b.yaml: document 2 (line 6): service default/x: is in this file before, which counts"
	m.want("x=10.96.0.2", twice)
	m.write("a.yaml", manifestService("x", "10.96.0.1"))
	m.want("x=10.96.0.1",
		"file b.yaml: document 1 (line 1): service default/x: is in file a.yaml too, which counts",
		twice)
	require.NoError(t, os.Remove(filepath.Join(dir, "a.yaml")))
	m.want("x=10.96.0.2", twice)
	m.write("b.yaml", manifestService("other", "10.96.0.2"))
	m.want("other=10.96.0.2")
}

func TestManifestsNode(t *testing.T) {
	node := func(name, addr string) string {
		return fmt.Sprintf("---\napiVersion: v1\nkind: Node\nmetadata: {name: %s}\nstatus: {addresses: [{type: InternalIP, address: %s}]}\n", name, addr)
	}
	svc := strings.Replace(manifestService("a", "10.96.0.1"), "{port: 80}", "{port: 80, nodePort: 30080}", 1)
	t.Run("by name", func(t *testing.T) {
		dir := t.TempDir()
		m := &manifests{T: t, dir: dir}
		m.write("a.yaml", svc+node("n1", "172.18.0.1")+node("n2", "172.18.0.2"))
		m = watchManifests(t, dir, Config{NodeName: "n2"})
		m.want("a=10.96.0.1")
		require.Contains(t, m.have["a"], "NodePort 172.18.0.2:30080")
		m.write("a.yaml", svc+node("n1", "172.18.0.1"))
		require.Eventually(t, func() bool { apply(m.have, m.s.Take()); return !strings.Contains(m.have["a"], "NodePort") }, 5*time.Second, time.Millisecond)
	})
	t.Run("the only one", func(t *testing.T) {
		dir := t.TempDir()
		m := &manifests{T: t, dir: dir}
		m.write("a.yaml", svc+node("n1", "172.18.0.1"))
		m = watchManifests(t, dir, Config{})
		m.want("a=10.96.0.1")
		require.Contains(t, m.have["a"], "NodePort 172.18.0.1:30080")
		m.write("b.yaml", node("n2", "172.18.0.2"))
		m.want("a=10.96.0.1", "nodes in "+dir+": 2 Nodes but no node name is configured: none of them is used")
		require.NotContains(t, m.have["a"], "NodePort")
	})
}

func TestManifestsMissingDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	err := (&ManifestSource{Dir: dir}).Run(context.Background(), NewStore(Config{}, quiet()))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, dir)
}
