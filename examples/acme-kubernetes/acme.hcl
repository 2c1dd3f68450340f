# An external compute driver of one's own, acme-kubernetes: what the kubernetes driver does, with a namespace for each
# tenant and an address for each sandbox. An OpenShell gateway uses it through its socket. README.md explains each part.

gateway {
  data_dir = "/var/lib/sandgate"
  listen   = "unix:///run/sandgate/gateway.sock"
}

extension "tenant-namespace" {
  command  = "/usr/lib/sandgate/extensions/tenant-namespace"
  checksum = "sha256:0000000000000000000000000000000000000000000000000000000000000000" # sha256sum prints it
  config {
    tenant "team-*" {
      labels = { tier = "agents" }
      limits {
        cpu    = 2
        memory = "4GiB"
      }
      namespace {
        own          = true
        labels       = { "pod-security.kubernetes.io/enforce" = "baseline" }
        quota        = { "pods" = "50", "limits.memory" = "128Gi" }
        deny_traffic = true
      }
    }
  }
}

extension "ipam" {
  command  = "/usr/lib/sandgate/extensions/ipam"
  checksum = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
  paths {
    write = ["/var/lib/sandgate-ipam"]
  }
  config {
    store = "/var/lib/sandgate-ipam"
    pool "sandboxes" {
      cidr = "10.80.0.0/16"
    }
  }
}

driver "kubernetes" {
  config {
    kubeconfig     = "/etc/sandgate/kubeconfig"
    workspace_mode = "shared" # the extension makes the namespaces
    namespace      = "sandgate"
  }
}

driver "acme-kubernetes" {
  base = "kubernetes"

  bind "tenant-namespace" {
    grant {
      mutate = [
        "Namespace", "ResourceQuota", "LimitRange", "NetworkPolicy",
        "Sandbox.placement.namespace",
        "PodTemplate.template.metadata.labels",
      ]
    }
  }

  bind "ipam" {
    reconcile = "authoritative"
    grant {
      mutate = [
        "PodTemplate.template.metadata.annotations[extensions.sandgate.dev/address]",
        "PodTemplate.template.metadata.labels[extensions.sandgate.dev/address]",
        "NetworkPolicy",
      ]
    }
  }

  expose {
    socket       = "/run/sandgate/drivers/acme-kubernetes.sock"
    allowed_uids = [1000] # the user that the OpenShell gateway runs as
  }
}
