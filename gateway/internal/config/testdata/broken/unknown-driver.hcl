driver "kuberntes" {}
