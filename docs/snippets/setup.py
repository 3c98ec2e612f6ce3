from fperr import data, zoo

model, images = zoo.load("fashion_saturated"), data.fashion_mnist_1000().first(100)
x, y = images.x, images.y
