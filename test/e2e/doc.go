// Package e2e tests the agent against a real Kubernetes API server: what is created there is what connections reach. The
// laboratory (package lab) is the cluster's network, and the tests take the part of its controllers.
//
// The tests need etcd and kube-apiserver (package kubetest) and are skipped without.
package e2e
