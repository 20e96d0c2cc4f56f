package endpoints

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	v1 "k8s.io/api/core/v1"
)

// ManifestSource reads Services, EndpointSlices and Nodes from the YAML and JSON files of a directory and follows
// their changes. Subdirectories and names that begin with a dot are not read.
//
// Of an object in several files the one whose file name comes first counts. A file with a part that cannot be read
// keeps what it held before: a typing error must not end a Service. Replace files by rename where they are large.
type ManifestSource struct {
	Dir string
}

const (
	maxManifest = 64 << 20
	// An editor truncates and writes; a file is read when its directory was quiet for so long.
	manifestQuiet    = 20 * time.Millisecond
	manifestMaxDelay = 500 * time.Millisecond
	// Some changes raise no event: in the target of a symbolic link, on a network file system, or when the directory
	// itself was replaced.
	manifestRescan = 5 * time.Second
)

// Run hands all objects to s, then follows changes until ctx ends. It fails only if it cannot begin.
func (m *ManifestSource) Run(ctx context.Context, s *Store) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch manifests: %w", err)
	}
	defer func() { _ = w.Close() }()
	// The watch begins before the first scan, so that nothing falls between.
	if err := w.Add(m.Dir); err != nil {
		return fmt.Errorf("watch manifests in %s: %w", m.Dir, err)
	}
	d := newManifestDir(m.Dir, s)
	if _, err := os.ReadDir(m.Dir); err != nil {
		return fmt.Errorf("read manifests: %w", err)
	}
	d.scan(nil)
	s.Synced()
	return d.follow(ctx, w)
}

// follow scans the directory after events and from time to time.
func (d *manifestDir) follow(ctx context.Context, w *fsnotify.Watcher) error {
	rescan := time.NewTicker(manifestRescan)
	defer rescan.Stop()
	var quiet <-chan time.Time
	var first time.Time
	touched := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-w.Events:
			touched[filepath.Base(e.Name)] = true
			if quiet == nil {
				first = time.Now()
			}
			quiet = time.After(min(manifestQuiet, max(0, manifestMaxDelay-time.Since(first))))
		case err := <-w.Errors:
			d.store.problems.log.Warn("lost track of manifests, reading them all", "dir", d.path, "err", err)
			for name := range d.files {
				touched[name] = true
			}
			quiet = time.After(0)
		case <-quiet:
			d.scan(touched)
			clear(touched)
			quiet = nil
		case <-rescan.C:
			// Adding again is how a directory that was replaced comes back; scan reports if it is missing.
			_ = w.Add(d.path)
			d.scan(nil)
		}
	}
}

// manifestDir is what the files of the directory hold. It keeps names only, not the objects.
type manifestDir struct {
	path    string
	store   *Store
	files   map[string]*manifestFile
	holders map[objectKey][]string // names of the files with the object, sorted: the first one counts
	nodes   map[string]*v1.Node    // of the files
}

type manifestFile struct {
	info fs.FileInfo
	keys []objectKey
}

func newManifestDir(path string, s *Store) *manifestDir {
	return &manifestDir{path: path, store: s, files: map[string]*manifestFile{}, holders: map[objectKey][]string{}, nodes: map[string]*v1.Node{}}
}

// scan reads the files that changed, and those in touched even if they look the same.
func (d *manifestDir) scan(touched map[string]bool) {
	infos, err := d.list()
	if err != nil {
		d.store.report("manifests "+d.path, []fault{faultf("", "%s; what was read before stays", oneLine(err))})
		return
	}
	d.store.report("manifests "+d.path, nil)
	stale := map[objectKey]bool{} // objects that a file gained or lost
	for name, f := range d.files {
		if infos[name] == nil {
			d.hold(name, f, nil, stale)
			delete(d.files, name)
			d.store.report(fileObject(name), nil)
		}
	}
	read := map[string]*decoded{}
	for name, info := range infos {
		f := d.files[name]
		if f != nil && !touched[name] && sameFile(f.info, info) {
			continue
		}
		if f == nil {
			f = &manifestFile{}
			d.files[name] = f
		}
		f.info = info
		read[name] = d.read(name, info)
		d.hold(name, f, read[name], stale)
	}
	d.apply(read, stale)
}

// list returns the manifests in the directory, by name. Symbolic links are followed.
func (d *manifestDir) list() (map[string]fs.FileInfo, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	infos := map[string]fs.FileInfo{}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			continue
		}
		info, err := os.Stat(filepath.Join(d.path, name))
		switch {
		case errors.Is(err, fs.ErrNotExist): // gone since, or a link to nowhere
		case err != nil:
			d.store.report(fileObject(name), []fault{faultf("", "%s", oneLine(err))})
		case !info.IsDir():
			infos[name] = info
		}
	}
	return infos, nil
}

func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

func (d *manifestDir) read(name string, info fs.FileInfo) *decoded {
	broken := func(format string, args ...any) *decoded {
		return &decoded{broken: true, faults: []fault{faultf("", format, args...)}}
	}
	if !info.Mode().IsRegular() {
		return broken("is not a regular file")
	}
	f, err := os.Open(filepath.Join(d.path, name))
	if err != nil {
		return broken("%s", oneLine(err))
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	switch {
	case err != nil:
		return broken("%s", oneLine(err))
	case len(data) > maxManifest:
		return broken("is larger than %d MiB", maxManifest>>20)
	}
	return decodeManifest(name, data)
}

// hold makes content the content of the file, nil if it is gone, and adds the objects it gained or lost to stale.
func (d *manifestDir) hold(name string, f *manifestFile, content *decoded, stale map[objectKey]bool) {
	has := map[objectKey]bool{}
	if content != nil {
		for _, o := range content.objects {
			has[o.key] = true
		}
	}
	had := map[objectKey]bool{}
	for _, k := range f.keys {
		had[k] = true
		if content != nil && content.broken {
			has[k] = true
		}
		if !has[k] {
			stale[k] = true
			d.holders[k] = slices.DeleteFunc(d.holders[k], func(h string) bool { return h == name })
		}
	}
	f.keys = f.keys[:0]
	for k := range has {
		f.keys = append(f.keys, k)
		if !had[k] {
			stale[k] = true
			d.holders[k] = append(d.holders[k], name)
			slices.Sort(d.holders[k])
		}
	}
}

// apply hands the objects of the read files to the store. Files that share a stale object are read again: they may
// have to step in, or to say that they are not used.
func (d *manifestDir) apply(read map[string]*decoded, stale map[objectKey]bool) {
	for k := range stale {
		for _, name := range d.holders[k] {
			if read[name] == nil {
				read[name] = d.read(name, d.files[name].info)
			}
		}
	}
	for name, content := range read {
		faults := content.faults
		seen := map[objectKey]bool{}
		for i := range content.objects {
			o := &content.objects[i]
			holders := d.holders[o.key]
			switch {
			case seen[o.key]:
				faults = append(faults, faultf(o.field, "%s: is in this file before, which counts", o.key))
			case len(holders) > 0 && holders[0] != name:
				faults = append(faults, faultf(o.field, "%s: is in file %s too, which counts", o.key, holders[0]))
			default:
				d.set(o)
			}
			seen[o.key] = true
		}
		d.store.report(fileObject(name), faults)
	}
	for k := range stale {
		if len(d.holders[k]) == 0 {
			delete(d.holders, k)
			d.remove(k)
		}
	}
	d.chooseNode()
}

func (d *manifestDir) set(o *manifestObject) {
	switch {
	case o.service != nil:
		d.store.SetService(o.service)
	case o.slice != nil:
		d.store.SetSlice(o.slice)
	case o.node != nil:
		d.nodes[o.node.Name] = o.node
	}
}

func (d *manifestDir) remove(k objectKey) {
	switch k.kind {
	case kindService:
		d.store.DeleteService(k.name)
	case kindSlice:
		d.store.DeleteSlice(k.name.Namespace, k.name.Name)
	case kindNode:
		delete(d.nodes, k.name.Name)
	}
}

// chooseNode finds the own Node: by name, or if there is no name, the only one.
func (d *manifestDir) chooseNode() {
	own := d.nodes[d.store.cfg.NodeName]
	var faults []fault
	if d.store.cfg.NodeName == "" {
		switch len(d.nodes) {
		case 0:
		case 1:
			for _, n := range d.nodes {
				own = n
			}
		default:
			faults = append(faults, faultf("", "%d Nodes but no node name is configured: none of them is used", len(d.nodes)))
		}
	}
	d.store.report("nodes in "+d.path, faults)
	if own == nil {
		d.store.DeleteNode()
		return
	}
	d.store.SetNode(own)
}

func fileObject(name string) string { return "file " + name }
